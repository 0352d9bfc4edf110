"""Images a second from files to Parquet: `python benchmarks/embedding.py FOLDER`.

One architecture, CLIP's ViT with random weights, embeds the same photographs five ways: by
`vitfold.embed`, dense and folded; by a plain loop over transformers, a batch at a time; by
open_clip's own transform in a DataLoader, as its users do; and by decoding alone, which is what no
model can be faster than. All compute with as many threads, and read with as many processes; the
plain loop has none.

    python benchmarks/embedding.py FOLDER                    # writes embedding-cpu.md and .json
    python benchmarks/embedding.py FOLDER --model ViT-B-16 --r 12 --device cuda --limit 20000
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import open_clip
import torch
import transformers
import typer
from open_clip.model import CLIPVisionCfg
from PIL import Image
from tables import markdown
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import vitfold
from vitfold.cli import show
from vitfold.folding.families import processor
from vitfold.folding.fold import clone
from vitfold.serve.embedder import preparation_of
from vitfold.serve.listing import in_parts
from vitfold.serve.pool import Pool
from vitfold.serve.source import entries_of
from vitfold.serve.walking import Walk
from vitfold.tools import results

EMBED = "vitfold.embed"

FILES = Path(__file__).with_name("embedding-cpu")


class Photographs(Dataset[Tensor]):
    """Files by a transform of open_clip's."""

    def __init__(self, files: list[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> Tensor:
        return self.transform(Image.open(self.files[place]).convert("RGB"))


def of_transformers(vision: CLIPVisionCfg, dimension: int) -> nn.Module:
    """The same architecture in transformers."""
    config = transformers.CLIPVisionConfig(
        hidden_size=vision.width,
        intermediate_size=4 * vision.width,
        num_hidden_layers=vision.layers,
        num_attention_heads=vision.width // vision.head_width,
        patch_size=vision.patch_size,
        image_size=vision.image_size,
        projection_dim=dimension,
    )
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    options = json.loads(transformers.CLIPImageProcessor().to_json_string())
    known = {name: options[name] for name in processor.FIELDS if options.get(name) is not None}
    processor.put(model.config, known)
    return model  # type: ignore[no-any-return]


def embed(model: nn.Module, files: list[Path], batch: int, workers: int) -> float:
    """Images a second of `vitfold.embed`, from a model in memory to files that are whole."""
    with tempfile.TemporaryDirectory() as work:
        result = vitfold.embed(model, files, work, batch_size=batch, workers=workers)
        assert result.failed == 0
        return float(result.manifest["run"]["images_per_second"])


def decode(model: nn.Module, files: list[Path], batch: int, workers: int) -> float:
    """Images a second of reading alone."""
    entries = in_parts(entries_of(files, Walk()), batch)
    start = time.perf_counter()
    count = sum(len(b.reasons) for b in Pool(preparation_of(model), workers).stream(entries))
    return count / (time.perf_counter() - start)


def loop(model: Any, files: list[Path], batch: int) -> float:
    """Images a second of a plain loop over transformers."""
    prepare = transformers.CLIPImageProcessor()
    device, rows = next(model.parameters()).device, []
    start = time.perf_counter()
    with torch.inference_mode():
        for part in (files[n : n + batch] for n in range(0, len(files), batch)):
            pictures = [Image.open(file).convert("RGB") for file in part]
            inputs = prepare(images=pictures, return_tensors="pt").to(device)
            rows.append(model(**inputs).image_embeds.cpu())
    torch.cat(rows)
    return len(files) / (time.perf_counter() - start)


def usual(model: Any, transform: Any, files: list[Path], batch: int, workers: int) -> float:
    """Images a second of open_clip's transform in a DataLoader, and `encode_image`."""
    device, rows = next(model.parameters()).device, []
    start = time.perf_counter()
    with torch.inference_mode():
        for images in DataLoader(Photographs(files, transform), batch, num_workers=workers):
            rows.append(model.encode_image(images.to(device)).cpu())
    torch.cat(rows)
    return len(files) / (time.perf_counter() - start)


def main(
    folder: Path,
    model: str = "ViT-B-16",
    r: Annotated[int, typer.Option(help="Tokens that merge in each block.")] = 12,
    limit: Annotated[int, typer.Option(help="Photographs.")] = 128,
    batch_size: int = 32,
    workers: int = 1,
    repeats: int = 1,
    device: str = "cpu",
    output: Annotated[Path, typer.Option(help="Of files, without ending.")] = FILES,
) -> None:
    """Measure every way, in turn, and keep the fastest of each."""
    files = sorted(folder.rglob("*.*"))
    files = [files[n * len(files) // limit] for n in range(limit)]
    torch.manual_seed(0)
    clip, _, transform = open_clip.create_model_and_transforms(model, pretrained=None)
    clip = clip.eval().to(device)
    vision = CLIPVisionCfg(**open_clip.get_model_config(model)["vision_cfg"])
    dense = of_transformers(vision, open_clip.get_model_config(model)["embed_dim"]).to(device)
    folded = vitfold.fold(clone(dense), vitfold.ToMe(r=r))
    ways: dict[str, Callable[[], float]] = {
        "decoding alone": lambda: decode(dense, files, batch_size, workers),
        "transformers, a plain loop": lambda: loop(dense, files, batch_size),
        "open_clip, a DataLoader": lambda: usual(clip, transform, files, batch_size, workers),
        f"{EMBED}, dense": lambda: embed(dense, files, batch_size, workers),
        f"{EMBED}, ToMe(r={r})": lambda: embed(folded, files, batch_size, workers),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            rates[name].append(way())
            print(f"{name}: {rates[name][-1]:.1f} images/s", flush=True)
    best = {name: max(values) for name, values in rates.items()}
    bound, base = best["decoding alone"], best["transformers, a plain loop"]
    rows: list[dict[str, Any]] = [
        {
            "way": name,
            "images_per_second": rate,
            "of_decoding": rate / bound,
            "times_the_loop": rate / base,
            "all": rates[name],
        }
        for name, rate in best.items()
    ]
    about = {"model": model, "images": limit, "batch_size": batch_size, "workers": workers}
    results.write(output.with_suffix(".json"), rows, about | {"threads": torch.get_num_threads()})
    lines = [
        [
            str(row["way"]),
            f"{row['images_per_second']:.1f}",
            f"{row['of_decoding']:.0%}",
            f"{row['times_the_loop']:.2f}",
        ]
        for row in rows
    ]
    columns = ["way", "images/s", "of decoding", "x the plain loop"]
    text = "\n".join(markdown(columns, lines)) + "\n"
    results.write_text(output.with_suffix(".md"), text)
    show.table(model, columns, lines)


if __name__ == "__main__":
    typer.run(main)
