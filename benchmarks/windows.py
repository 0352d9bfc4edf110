"""SAM's ViT-B encoder at 1,024 px, folded beside dense.

transformers' `SamVisionModel` with random weights, which is enough for times and not for fidelity:
the cosine of features on a photograph, stated here, orders folds and says nothing of masks. Folds
are measured in turn with the dense encoder; what matching takes of a block, in the call before.

    python benchmarks/windows.py imagenet-samples.tar
"""

import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from PIL import Image
from speed import ratio
from tables import HERE, markdown, spread
from torch import Tensor, nn
from torchvision.transforms.functional import normalize, to_tensor
from transformers import SamVisionConfig, SamVisionModel

import vitfold
from vitfold import ToMeAround
from vitfold.cli import show
from vitfold.folding.families import find
from vitfold.folding.flops import dry_count
from vitfold.folding.fold import clone
from vitfold.methods.tome_around import Around
from vitfold.tools import results
from vitfold.tools.measure import interleave, quartiles, timed

DENSE = "dense"

GLOBAL = (2, 5, 8, 11)


def numbers(everywhere: int, windows: int) -> list[int]:
    """What leaves blocks that attend to the whole map, and those that attend in windows."""
    return [everywhere if block in GLOBAL else windows for block in range(12)]


FOLDS = {
    "a quarter in all blocks": ToMeAround(r=1024),
    "half in the global blocks": ToMeAround(r=numbers(2048, 0)),
    "half in all blocks": ToMeAround(r=2048),
}


def encoder() -> Any:
    """SAM's, with random weights of the size that such layers have."""
    torch.manual_seed(0)
    model = SamVisionModel(SamVisionConfig(initializer_range=0.02)).eval()
    for name, weight in model.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            nn.init.trunc_normal_(weight, std=0.02)
    return model


class Matching:
    """Seconds of matching and of whole blocks, in calls of one model."""

    def __init__(self) -> None:
        self.matching: list[float] = []
        self.blocks: list[float] = []

    @contextmanager
    def timing(self, model: nn.Module) -> Iterator[None]:
        """Within it, calls of a model are timed."""
        plain = Around._map
        handles = [
            handle
            for block in find(model).blocks
            for handle in (
                block.register_forward_pre_hook(self._begins),
                block.register_forward_hook(self._ends),
            )
        ]
        Around._map = self._timed(plain)  # type: ignore[method-assign]
        try:
            yield
        finally:
            Around._map = plain  # type: ignore[method-assign]
            for handle in handles:
                handle.remove()

    def _begins(self, *_: Any) -> None:
        self.matching.append(0.0)
        self.blocks.append(-time.perf_counter())

    def _ends(self, *_: Any) -> None:
        self.blocks[-1] += time.perf_counter()

    def _timed(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def run(step: Around, metric: Tensor, state: Any) -> Any:
            start = time.perf_counter()
            result = plain(step, metric, state)
            self.matching[-1] += time.perf_counter() - start
            return result

        return run

    def shares(self) -> tuple[float, float]:
        """What matching takes of a global block, and of one in windows, on average."""
        either: list[list[float]] = [[], []]
        for block, (part, whole) in enumerate(zip(self.matching, self.blocks, strict=True)):
            either[block % 12 not in GLOBAL].append(part / whole)
        return sum(either[0]) / len(either[0]), sum(either[1]) / len(either[1])


@torch.inference_mode()
def first_call(model: Any, image: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """The features, and the shares of matching, in one call."""
    watch = Matching()
    with watch.timing(model):
        features = model(image).last_hidden_state
    return features, watch.shares()


def picture(archive: Path) -> Tensor:
    """The photograph in the middle of an archive."""
    with tarfile.open(archive) as files:
        members = [member for member in files if member.isfile()]
        opened = files.extractfile(members[len(members) // 2])
        assert opened is not None
        photograph = (
            Image.open(opened).convert("RGB").resize((1024, 1024), Image.Resampling.BICUBIC)
        )
    pixels: Tensor = normalize(to_tensor(photograph), MEAN, DEVIATION)
    return pixels.unsqueeze(0)


MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def measure(repeats: int, image: Tensor) -> list[dict[str, Any]]:
    """All folds, in turn with the dense encoder."""
    model = encoder()
    named = {DENSE: model} | {name: vitfold.fold(clone(model), m) for name, m in FOLDS.items()}
    seen = {name: first_call(candidate, image) for name, candidate in named.items()}
    runs = {name: timed(candidate, image) for name, candidate in named.items()}
    with show.bar("SAM ViT-B", repeats * len(runs)) as progress:
        seconds = interleave(runs, repeats, 0, progress)
    inputs = {"pixel_values": image}
    return [
        {
            "encoder": name,
            "TFLOPs": dry_count(candidate, inputs) / 1e12,
            "s": list(quartiles(seconds[name])),
            "x dense": list(ratio(seconds[DENSE], seconds[name])),
            "matching, of a global block": f"{seen[name][1][0]:.1%}",
            "of one in windows": f"{seen[name][1][1]:.1%}",
            "cosine": float(F.cosine_similarity(seen[name][0], seen[DENSE][0], dim=1).mean()),
        }
        for name, candidate in named.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Medians, with quartiles in brackets."""
    cells = [[_cell(value) for value in row.values()] for row in rows]
    return "\n".join([*markdown(list(rows[0]), cells), ""])


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return spread(value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main(
    photographs: Path,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    output: Path = HERE,
) -> None:
    """Measure on a photograph of an archive, and write `windows-cpu.md` and `.json`."""
    rows = measure(repeats, picture(photographs))
    results.write(output / "windows-cpu.json", rows, {"command": "benchmarks/windows.py"})
    (output / "windows-cpu.md").write_text(table(rows), encoding="utf-8")
    show.console.print(table(rows), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
