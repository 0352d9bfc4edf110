"""What stands in for what the blocks of a page find on a reader's machine: small models for those
that are downloaded, noise for images, a few pictures for a folder of them.

Every page with blocks of Python has one function here. It yields the names that a block finds, once
for each block of the page, and what stands behind a `yield` looks at what that block has left. The
names are the same dictionary throughout, so that blocks find what those before them have made.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from PIL import Image

import vitfold
from support import hf_models, vision_language
from support.corpora import folder
from support.hf_hosts import host
from support.models import images, registered, scatter
from support.saving import output
from support.small import vit
from support.windowed import MASKS, SAM
from vitfold.data import preprocessing
from vitfold.folding.families.registry import REGISTRY

Names = dict[str, Any]
StandIn = Callable[[pytest.MonkeyPatch], Iterator[Names]]


def small(**options: Any) -> Any:
    """A model with the patches and blocks of those that the pages name, but narrow."""
    size = {"img_size": 224, "depth": 12, "embed_dim": 48, "num_heads": 3}
    return registered("vit_tiny_patch16_224", **(size | options))


def no_download(patch: pytest.MonkeyPatch, **options: Any) -> None:
    """timm makes the model that it is asked for, with the same random weights at every call in
    place of its pretrained ones."""
    create = timm.create_model

    def seeded(name: str, pretrained: bool = False, **arguments: Any) -> Any:
        torch.manual_seed(0)
        return create(name, **(arguments | options))

    patch.setattr(timm, "create_model", seeded)


def readme(patch: pytest.MonkeyPatch) -> Iterator[Names]:
    no_download(patch)
    pixels = torch.randn(2, 3, 224, 224)
    names: Names = {"images": pixels}
    yield names
    model = names["model"]
    assert "_vitfold" not in model.__dict__
    assert torch.equal(output(model, pixels), output(timm.create_model(DEIT).eval(), pixels))
    names["batches"] = [(pixels, torch.zeros(len(pixels), dtype=torch.long))]
    yield names
    trace = names["trace"]
    assert trace.counts[-1] == [trace.maps[-1].slots] * len(pixels)
    assert names["model"] is not model
    assert str(vitfold.folded(names["model"])) == str(vitfold.folded(model))


DEIT = "deit_small_patch16_224"


def index(patch: pytest.MonkeyPatch) -> Iterator[Names]:
    no_download(patch)
    names: Names = {"images": torch.randn(2, 3, 224, 224)}
    yield names
    assert vitfold.folded(names["model"]) is not None
    yield names
    assert len(names["trace"].counts) == len(names["model"].blocks)
    yield names


def training(patch: pytest.MonkeyPatch) -> Iterator[Names]:
    model = small(img_size=112)
    keys, pixels = list(model.state_dict()), images(model)
    names: Names = {"vitfold": vitfold, "model": model, "images": pixels}
    with pytest.warns(UserWarning, match="once it has learned how"):
        yield names
    learned = [key for key in model.state_dict() if key not in keys]
    assert learned == ["vitfold.merge", "vitfold.prune"]
    vitfold.unfold(model)
    names["loader"] = [(pixels, torch.tensor([0, 1]))]
    yield names
    assert isinstance(names["method"], vitfold.PruneMerge)


def own_family(patch: pytest.MonkeyPatch) -> Iterator[Names]:
    before = dict(REGISTRY)
    names: Names = {}
    try:
        yield names
        yield names
        assert output(names["model"], torch.randn(2, 3, 32, 32)).shape == (2, 10)
        yield names
        assert "mine.backbones.DinoVisionTransformer" in REGISTRY
    finally:
        REGISTRY.clear()
        REGISTRY.update(before)


def own_method(patch: pytest.MonkeyPatch) -> Iterator[Names]:
    model = registered("vit_tiny_patch16_224")
    try:
        yield {"vitfold": vitfold, "model": model}
        trace = vitfold.trace(model, images(model))
    finally:
        vitfold.METHODS.pop("tail", None)
    assert trace.counts == [[18, 18], [10, 10]]
    assert torch.equal(trace.maps[0].keep[0], torch.arange(18))


def embedding(patch: pytest.MonkeyPatch) -> Iterator[Names]:
    import datasets

    folder(Path("photographs"), 10)
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("cache").absolute())
    names: Names = {}
    yield names
    assert (names["result"].rows, names["result"].failed) == (10, 0)
    yield names
    assert len(names["frame"]) == len(names["dataset"]) == len(names["wide"]) == 10
    yield names
    assert names["neighbours"][0] == names["table"]["id"][0].as_py()


def segmentation(patch: pytest.MonkeyPatch) -> Iterator[Names]:
    no_download(patch, depth=6, embed_dim=48, num_heads=3)
    pixels = torch.randn(1, 3, 512, 512)
    names: Names = {"timm": timm, "vitfold": vitfold, "windows": pixels, "images": pixels}
    yield names
    assert names["model"](pixels).shape == (1, 150, 512, 512)
    depth = host("DepthAnythingForDepthEstimation")
    names |= {"AutoModelForDepthEstimation": pretrained(depth), "images": torch.rand(3, 3, 16, 16)}
    yield names
    assert vitfold.fidelity(depth, names["images"]).abs_rel is not None


def pretrained(thing: Any) -> Any:
    """A class that loads this, whatever it is asked for."""
    return SimpleNamespace(from_pretrained=lambda _: thing)


class Processor:
    """Makes a prompt of a photograph, as LLaVA's does."""

    def __call__(self, images: Any, text: str, return_tensors: str) -> dict[str, Any]:
        assert "<image>" in text
        return vision_language.inputs("Llava", [images])

    def batch_decode(self, tokens: torch.Tensor) -> list[str]:
        return [" ".join(map(str, row)) for row in tokens.tolist()]


def language(patch: pytest.MonkeyPatch) -> Iterator[Names]:
    model = vision_language.build("Llava")
    names: Names = {"vitfold": vitfold, "photograph": vision_language.picture(0)}
    names["AutoProcessor"] = pretrained(Processor())
    names["LlavaForConditionalGeneration"] = pretrained(model)
    yield names
    assert vitfold.folded(model).out == "reduced"  # type: ignore[union-attr]
    assert len(names["answer"][0].split()) <= 30
    assert '"out": "reduced"' in Path("plan/plan.json").read_text()


def dense(patch: pytest.MonkeyPatch) -> Iterator[Names]:
    import transformers

    model = hf_models.small("DPTForDepthEstimation")
    depth = transformers.DPTForDepthEstimation
    patch.setattr(depth, "from_pretrained", lambda *_, **__: model)
    names: Names = {"timm": timm, "vitfold": vitfold}
    names["images"] = hf_models.arguments_of(model)["pixel_values"]
    with torch.no_grad():
        before = model(names["images"]).predicted_depth
        yield names
    assert vitfold.folded(model) is not None
    assert names["depth"].shape == before.shape
    assert not torch.equal(names["depth"], before)
    assert names["report"].abs_rel is not None
    no_download(patch, depth=6, embed_dim=48, num_heads=3)
    names["images"] = torch.randn(4, 3, 518, 518)
    with torch.inference_mode():
        yield names
    assert names["features"].shape[:2] == (4, 1 + 37 * 37)
    with torch.inference_mode():
        yield names
    assert [len(each) for each in names["maps"]] == [4, 4]
    assert names["maps"][0].shape == (4, 48, 37, 37)


def windows(patch: pytest.MonkeyPatch) -> Iterator[Names]:
    """SAM with its patches, windows and number of blocks."""
    import transformers

    vision = SAM | {"image_size": 1024, "patch_size": 16, "window_size": 14}
    vision |= {"num_hidden_layers": 12, "global_attn_indexes": [2, 5, 8, 11]}
    prompts = MASKS["prompt_encoder_config"] | {"image_size": 1024, "patch_size": 16}
    config = transformers.SamConfig(
        vision_config=vision, **(MASKS | {"prompt_encoder_config": prompts})
    )
    model = scatter(transformers.SamModel(config))
    names: Names = {"SamModel": SimpleNamespace(from_pretrained=lambda _: model)}
    names |= {"vitfold": vitfold, "images": torch.randn(1, 3, 1024, 1024)}
    with torch.no_grad():
        yield names | {"points": torch.full((1, 1, 1, 2), 17.0)}
    assert vitfold.folded(model) is not None


def serving(patch: pytest.MonkeyPatch) -> Iterator[Names]:
    """What `vitfold export` has written, for every block. Compiling takes a minute, and has a test
    of its own: a program of torch stands in."""
    picture = torch.rand(5, 6, 3, generator=torch.Generator().manual_seed(0)) * 255
    photo = Image.fromarray(picture.byte().numpy()).resize((60, 45), Image.Resampling.BICUBIC)
    photo.save("photo.jpg")
    model = vitfold.fold(vit(depth=2).float(), "tome", r=4)
    pixels = preprocessing(model)(Image.open("photo.jpg")).unsqueeze(0)
    for place, target in SERVED.items():
        inside = place == "pictures"
        vitfold.export(model, place, target=target, preprocess=inside, repeats=1, images=pixels)
    shutil.copytree("served-torch", "served-aoti")
    patch.setattr(
        torch._inductor,
        "aoti_load_package",
        lambda path: torch.export.load(path).module(),
    )
    for _ in [*SERVED, "served-aoti"]:
        names: Names = {}
        yield names
        logits = torch.as_tensor(names["logits"])
        assert torch.nn.functional.cosine_similarity(logits, output(model, pixels)).min() > 0.98


SERVED = {
    "served-onnx": "onnx",
    "served-openvino": "openvino",
    "pictures": "openvino",
    "served-torch": "torch",
}
"""The directories of the page, in its order, and the target that is written there."""


STAND_INS: dict[str, StandIn] = {
    "README.md": readme,
    "docs/adding-a-family.md": own_family,
    "docs/adding-a-method.md": own_method,
    "docs/dense.md": dense,
    "docs/embedding.md": embedding,
    "docs/index.md": index,
    "docs/segmentation.md": segmentation,
    "docs/serving.md": serving,
    "docs/training.md": training,
    "docs/vision-language.md": language,
    "docs/windowed-encoders.md": windows,
}
