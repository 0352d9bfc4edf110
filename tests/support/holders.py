"""Small models inside of what other libraries put around them, made by those libraries without a
network, in place of those that the lines of a page name.

A holder gives the names that such a line finds, and what the library answers for two images, which
a fold is to change a little.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from support.corpora import image
from support.hub import hub_here
from support.models import TINY, hf, images, registered, scatter

Names = dict[str, Any]
Answer = Callable[[], Tensor]
Holder = Callable[[pytest.MonkeyPatch], Iterator[tuple[Names, Answer]]]

PICTURES = [image(seed) for seed in (1, 2)]


def plain(patch: pytest.MonkeyPatch) -> Iterator[tuple[Names, Answer]]:
    """A model at hand."""
    model = registered("vit_tiny_patch16_224", depth=6)
    yield {"model": model}, _answer(model, images(model))


def of_timm(patch: pytest.MonkeyPatch) -> Iterator[tuple[Names, Answer]]:
    name, create = "vit_base_patch16_clip_224.openai", timm.create_model
    model = scatter(create(name, depth=3, embed_dim=48, num_heads=3, img_size=80))
    assert isinstance(model.pretrained_cfg, dict), "timm knows the name that the page gives"
    patch.setattr(timm, "create_model", _only(model, name))
    yield {"timm": timm}, _answer(model, images(model))


def of_transformers(patch: pytest.MonkeyPatch) -> Iterator[tuple[Names, Answer]]:
    from transformers import AutoModel

    hf("Dinov2Model").save_pretrained("dinov2")
    model = AutoModel.from_pretrained("dinov2").eval()
    pixels = torch.randn(2, 3, 20, 20)
    names = {"AutoModel": SimpleNamespace(from_pretrained=_only(model, "facebook/dinov2-base"))}
    yield names, _answer(model, pixels)


def pipeline(patch: pytest.MonkeyPatch) -> Iterator[tuple[Names, Answer]]:
    import transformers

    side = TINY["image_size"]
    hf("ViTForImageClassification", num_labels=3).save_pretrained("classifier")
    size = {"height": side, "width": side}
    transformers.ViTImageProcessor(size=size).save_pretrained("classifier")
    whole = transformers.pipeline("image-classification", model="classifier", device="cpu")

    def answer() -> Tensor:
        scores = [sorted(rows, key=lambda row: row["label"]) for rows in whole(PICTURES)]
        return torch.tensor([[row["score"] for row in rows] for rows in scores])

    yield {"pipeline": lambda task, model: whole, "name": "classifier"}, answer


def of_open_clip(patch: pytest.MonkeyPatch) -> Iterator[tuple[Names, Answer]]:
    import open_clip

    vision = {"image_size": 20, "patch_size": 4, "width": 32, "layers": 3, "head_width": 8}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    known = open_clip.factory._MODEL_CONFIGS
    assert "ViT-B-32" in known
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    patch.setitem(known, "ViT-B-32", config)
    model = scatter(open_clip.create_model("ViT-B-32"))
    patch.setattr(open_clip, "create_model", _only(model, "ViT-B-32"))
    yield {"open_clip": open_clip}, _answer(model.encode_image, torch.randn(2, 3, 20, 20))


def of_sentence_transformers(patch: pytest.MonkeyPatch) -> Iterator[tuple[Names, Answer]]:
    """A CLIP as that library saves and loads it: of text it encodes what it did."""
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(clip(Path("clip"))), device="cpu").save("sentences")
    model = SentenceTransformer("sentences", device="cpu")
    before = model.encode(["a c t"], convert_to_tensor=True)
    name = "sentence-transformers/clip-ViT-B-32"
    yield (
        {"SentenceTransformer": _only(model, name)},
        lambda: model.encode(PICTURES, convert_to_tensor=True),
    )
    assert torch.equal(model.encode(["a c t"], convert_to_tensor=True), before)


def clip(directory: Path) -> Path:
    """A small CLIP with what prepares images and text for it."""
    import transformers

    side = TINY["image_size"]
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "c</w>": 3, "t</w>": 4}
    tokenizer = transformers.CLIPTokenizer(vocab=words, merges=[])
    images = transformers.CLIPImageProcessor(**size)
    hf("CLIPModel").save_pretrained(directory)
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(directory)
    return directory


def of_torch_hub(patch: pytest.MonkeyPatch) -> Iterator[tuple[Names, Answer]]:
    vision = pytest.importorskip("dinov2.models.vision_transformer")
    sizes = {"img_size": 20, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 4}
    model = scatter(vision.DinoVisionTransformer(**sizes))
    patch.setattr(torch.hub, "load", _only(model, "facebookresearch/dinov2", "dinov2_vits14"))
    yield {"torch": torch}, _answer(model, torch.randn(2, 3, 20, 20))


def of_the_hub(patch: pytest.MonkeyPatch) -> Iterator[tuple[Names, Answer]]:
    import vitfold

    model = registered("vit_tiny_patch16_224")
    with hub_here(patch, Path("cache")):
        vitfold.push(vitfold.fold(model, "ward", flops=0.8), "ada/fold")
        yield {"model": vitfold.unfold(model)}, _answer(model, images(model))


def _only(model: Any, *names: str) -> Callable[..., Any]:
    """Makes this model, of that name and no other."""

    def create(*asked: str, **_: Any) -> Any:
        assert asked == names, f"support/holders.py has {names}, the page {asked}"
        return model

    return create


def _answer(model: Any, pixels: Tensor) -> Answer:
    def answer() -> Tensor:
        with torch.no_grad():
            out = model(pixels)
        return out if isinstance(out, Tensor) else out[0]

    return answer


HOLDERS: dict[str, Holder] = {
    "fold(model": plain,
    "timm.create_model": of_timm,
    "AutoModel": of_transformers,
    "pipeline": pipeline,
    "open_clip": of_open_clip,
    "SentenceTransformer": of_sentence_transformers,
    "torch.hub": of_torch_hub,
    'load("hub:': of_the_hub,
}
"""By what tells a line."""
