"""What the README shows works as it stands there."""

import re
from pathlib import Path

import pytest
import timm
import torch
from support.models import images, registered

import vitfold

README = Path(__file__).parent.parent / "README.md"


def block(word: str) -> str:
    """The Python block that holds a word."""
    result = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return next(code for code in result if word in code)


def test_the_method_of_the_readme_drops_the_last_tokens() -> None:
    model = registered("vit_tiny_patch16_224")
    try:
        exec(block("Tail"), {"vitfold": vitfold, "model": model})
        traced = vitfold.trace(model, images(model))
    finally:
        vitfold.METHODS.pop("tail", None)
    assert traced.counts == [[18, 18], [10, 10]]
    assert torch.equal(traced.maps[0].keep[0], torch.arange(18))


def test_its_first_lines_fold_and_unfold() -> None:
    model = registered("vit_tiny_patch16_224", img_size=224, depth=12)
    pixels = images(model)
    with torch.no_grad():
        before = model(pixels)
        code = block("import timm, vitfold").split("\n", 3)[3]
        exec(code, {"vitfold": vitfold, "model": model, "images": pixels})
        assert torch.equal(model(pixels), before)
    assert "_vitfold" not in model.__dict__


def test_its_second_lines_show_and_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = registered("vit_tiny_patch16_224", img_size=224, depth=12)
    code = block("vitfold.trace(").splitlines()
    names = {"vitfold": vitfold, "model": model, "images": images(model)}
    names["batches"] = [(names["images"], torch.zeros(len(names["images"]), dtype=torch.long))]
    exec("\n".join(code[:-1]), names)
    assert names["trace"].counts[-1] == [names["trace"].maps[-1].slots] * len(names["images"])
    assert code[-1] == 'model = vitfold.load("deit-s-lgtm")'
    assert vitfold.load("deit-s-lgtm", model) is model


def test_its_lines_on_a_class_for_every_pixel() -> None:
    pixels = torch.randn(1, 3, 64, 64)
    code = block("Segmenter").replace("pretrained=True", "depth=4").replace("512", "64")
    names = {"timm": timm, "vitfold": vitfold, "windows": pixels, "images": pixels}
    code = code.replace("flops=0.7", "flops=0.9").splitlines()
    exec("\n".join(code), names)
    assert names["model"](pixels).shape == (1, 150, 64, 64)


def test_its_lines_on_thresholds() -> None:
    model = registered("vit_tiny_patch16_224", depth=2)
    keys = list(model.state_dict())
    code = block('"ltmp"').replace("flops=0.6)", "flops=0.6, merge_threshold=0.3)")
    exec(code, {"vitfold": vitfold, "model": model, "images": images(model)})
    assert [key for key in model.state_dict() if key not in keys] == [
        "vitfold.merge",
        "vitfold.prune",
    ]
