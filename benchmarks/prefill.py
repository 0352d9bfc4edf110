"""What reading an image costs a vision-language model: dense, restored and reduced.

transformers' LLaVA with random weights, which is enough for times and says nothing of answers: the
tower of LLaVA 1.5 (CLIP's ViT-L/14 at 336 px, 576 visual tokens) and a language model of Llama's
layers, about 1.1 billion weights. Prefill is one call on a prompt of one image and some words that
fills the cache and gives the logits of the next word. All folds are measured in turn with the dense
model; the tower alone beside them.

    python benchmarks/prefill.py
    python benchmarks/prefill.py --tiny --repeats 2 --output /tmp
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from speed import ratio
from tables import HERE, markdown, spread
from transformers import LlavaConfig, LlavaForConditionalGeneration

import vitfold
from vitfold.cli import show
from vitfold.folding.flops import count
from vitfold.folding.fold import clone
from vitfold.tokens.modes import evaluating
from vitfold.tools import results
from vitfold.tools.measure import interleave, now, quartiles

DENSE = "dense"

IMAGE = 100
"""The placeholder."""

TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}

WORDS = {
    "model_type": "llama",
    "vocab_size": 32064,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
}

SMALL_TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6,
               "num_attention_heads": 4, "image_size": 112}  # fmt: skip

SMALL_WORDS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
               "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 256}  # fmt: skip

SHARES = (0.75, 0.6)
"""Of the FLOPs of the tower."""


def build(tiny: bool, dtype: torch.dtype, device: str) -> Any:
    """The model, with random weights."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=TOWER | (SMALL_TOWER if tiny else {}),
        text_config=WORDS | (SMALL_WORDS if tiny else {}),
        image_token_id=IMAGE,
        vision_feature_layer=-2,
    )
    return LlavaForConditionalGeneration(config).to(device, dtype).eval()


def inputs_of(model: Any, words: int) -> dict[str, Any]:
    """A prompt of one image and so many words."""
    vision = model.config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(IMAGE + 1, IMAGE + 100, (words,), generator=generator).tolist()
    ids = torch.tensor([[1, *[IMAGE] * tokens, *text]], device=model.device)
    side = vision.image_size
    pixels = torch.randn(1, 3, side, side, generator=generator).to(model.device, model.dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def timed(model: Any, call: Callable[[], Any]) -> Callable[[], float]:
    """Seconds of a call."""

    def run() -> float:
        with torch.inference_mode(), evaluating(model):
            start = now(model.device)
            call()
            return now(model.device) - start

    return run


def prefill(model: Any, inputs: dict[str, Any]) -> Callable[[], Any]:
    return lambda: model(**inputs, use_cache=True, logits_to_keep=1)


def tower(model: Any, inputs: dict[str, Any]) -> Callable[[], Any]:
    return lambda: model.get_image_features(pixel_values=inputs["pixel_values"])


def folds(model: Any) -> dict[str, Any]:
    """The dense model, and what shares its weights, folded."""
    named = {DENSE: model}
    for share in SHARES:
        for out in ("restored", "reduced"):
            method = vitfold.ToMe(flops=share)
            named[f"ToMe at {share}, {out}"] = vitfold.fold(clone(model), method, out=out)
    return named


@torch.inference_mode()
def measure(model: Any, words: int, repeats: int) -> list[dict[str, Any]]:
    """All folds, in turn with the dense model."""
    inputs, named = inputs_of(model, words), folds(model)
    places = {
        name: prefill(one, inputs)().past_key_values.get_seq_length() for name, one in named.items()
    }
    runs = {name: timed(one, prefill(one, inputs)) for name, one in named.items()}
    towers = {f"{name}, tower": timed(one, tower(one, inputs)) for name, one in named.items()}
    with show.bar("prefill", repeats * 2 * len(runs)) as progress:
        seconds = interleave(runs | towers, repeats, 0, progress)
    return [
        {
            "model": name,
            "places in the cache": places[name],
            "TFLOPs": count(prefill(one, inputs)) / 1e12,
            "tower, s": list(quartiles(seconds[f"{name}, tower"])),
            "prefill, s": list(quartiles(seconds[name])),
            "x dense": list(ratio(seconds[DENSE], seconds[name])),
        }
        for name, one in named.items()
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
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    words: Annotated[int, typer.Option(min=1, help="Of the prompt, besides its image.")] = 64,
    device: str = "cpu",
    dtype: str = "float32",
    tiny: Annotated[bool, typer.Option(help="A model that runs in no time: to try it.")] = False,
    output: Path = HERE,
) -> None:
    """Measure prefill, and write `prefill-DEVICE.md` and `.json`."""
    rows = measure(build(tiny, getattr(torch, dtype), device), words, repeats)
    about = {"command": "benchmarks/prefill.py", "words": words, "dtype": dtype}
    results.write(output / f"prefill-{device}.json", rows, about)
    (output / f"prefill-{device}.md").write_text(table(rows), encoding="utf-8")
    show.console.print(table(rows), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
