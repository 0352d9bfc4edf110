"""What the README and the pages of docs show works as it stands there."""

import re
from pathlib import Path

import pytest
import timm
import torch
from support.models import images, registered

import vitfold

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def block(page: str, word: str) -> str:
    """The Python block of a page that holds a word."""
    text = (ROOT / page).read_text(encoding="utf-8")
    result = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return next(code for code in result if word in code)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)", page.read_text("utf-8")):
        if link.startswith("https://"):
            continue
        target = page if not link else (page.parent / link).resolve()
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            heads = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            named = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
            assert anchor in named, f"{link}#{anchor}"


def test_the_method_of_the_docs_drops_the_last_tokens() -> None:
    model = registered("vit_tiny_patch16_224")
    try:
        exec(block("docs/adding-a-method.md", "Tail"), {"vitfold": vitfold, "model": model})
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
        code = block("README.md", "import timm, vitfold").split("\n", 3)[3]
        exec(code, {"vitfold": vitfold, "model": model, "images": pixels})
        assert torch.equal(model(pixels), before)
    assert "_vitfold" not in model.__dict__


def test_its_second_lines_show_and_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = registered("vit_tiny_patch16_224", img_size=224, depth=12)
    code = block("README.md", "vitfold.trace(").splitlines()
    names = {"vitfold": vitfold, "model": model, "images": images(model)}
    names["batches"] = [(names["images"], torch.zeros(len(names["images"]), dtype=torch.long))]
    exec("\n".join(code[:-1]), names)
    assert names["trace"].counts[-1] == [names["trace"].maps[-1].slots] * len(names["images"])
    assert code[-1] == 'model = vitfold.load("deit-s-lgtm")'
    assert vitfold.load("deit-s-lgtm", model) is model


def test_its_lines_on_a_class_for_every_pixel() -> None:
    pixels = torch.randn(1, 3, 64, 64)
    code = (
        block("docs/segmentation.md", "Segmenter")
        .replace("pretrained=True", "depth=4")
        .replace("512", "64")
    )
    names = {"timm": timm, "vitfold": vitfold, "windows": pixels, "images": pixels}
    code = code.replace("flops=0.7", "flops=0.9").splitlines()
    exec("\n".join(code), names)
    assert names["model"](pixels).shape == (1, 150, 64, 64)


def test_its_lines_on_thresholds() -> None:
    model = registered("vit_tiny_patch16_224", depth=2)
    keys = list(model.state_dict())
    code = block("docs/methods.md", '"ltmp"').replace(
        "flops=0.6)", "flops=0.6, merge_threshold=0.3)"
    )
    exec(code, {"vitfold": vitfold, "model": model, "images": images(model)})
    assert [key for key in model.state_dict() if key not in keys] == [
        "vitfold.merge",
        "vitfold.prune",
    ]
