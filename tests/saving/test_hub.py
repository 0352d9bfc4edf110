"""Folds on the hub: they come back as they went there, and nothing else is fetched."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from support.cli import pictures, vitfold_
from support.hub import Hub, hub_here
from support.small import images, vit
from torch import Tensor, nn

import vitfold
from vitfold.errors import PlanError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_here(monkeypatch, tmp_path / "cache") as here:
        yield here


def digits(**options: Any) -> nn.Module:
    model = vitfold.create_model("digits", pretrained=True)
    return vitfold.fold(model, "ward", **({"flops": 0.6} | options))


def some() -> Tensor:
    return torch.rand(2, 1, 56, 56, generator=torch.Generator().manual_seed(0))


def answers(model: nn.Module) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(some())
    return out


def test_a_fold_comes_back(hub: Hub) -> None:
    model = digits()
    name = vitfold.push(model, "ada/fold")
    assert name.startswith("hub:ada/fold@")
    files = hub.revisions["ada/fold"][name.partition("@")[2]]
    assert set(files) == {"plan.json", "README.md"}
    page = files["README.md"].decode()
    assert page.startswith("---\nlibrary_name: vitfold")
    assert 'vitfold.load("hub:ada/fold")' in page
    for place in (name, "hub:ada/fold", Path("hub:ada/fold")):
        loaded = vitfold.load(place)
        assert vitfold.folded(loaded) == vitfold.folded(model)
        assert torch.equal(answers(loaded), answers(model))
    assert torch.equal(answers(vitfold.create_model("hub:ada/fold")), answers(model))


def test_weights_and_what_was_learned_come_back(hub: Hub) -> None:
    model = vitfold.fold(vit().float(), "ltmp")
    name = vitfold.push(model, "ada/learned", backbone=True)
    loaded = vitfold.load(name, vit(depth=4).float())
    x = images(model, dtype=torch.float32)
    assert torch.equal(loaded(x), model(x))
    # Without weights of its own, those of before are there no more.
    again = vitfold.push(vitfold.fold(vit().float(), "ward", r=4), "ada/learned")
    files = hub.revisions["ada/learned"][again.partition("@")[2]]
    assert set(files) == {"plan.json", "README.md"}


def test_a_revision_is_pinned(hub: Hub) -> None:
    first = vitfold.push(digits(), "ada/fold")
    second = vitfold.push(digits(flops=0.8), "ada/fold")
    assert first != second
    assert vitfold.folded(vitfold.load(first)) == vitfold.folded(digits())
    assert vitfold.folded(vitfold.load("hub:ada/fold")) == vitfold.folded(digits(flops=0.8))
    vitfold.push(digits(flops=0.7), "ada/fold", branch="lighter")
    assert vitfold.folded(vitfold.load("hub:ada/fold@lighter")) == vitfold.folded(digits(flops=0.7))
    assert vitfold.folded(vitfold.load("hub:ada/fold")) == vitfold.folded(digits(flops=0.8))


def test_nothing_else_is_fetched(hub: Hub, tmp_path: Path) -> None:
    name = vitfold.push(digits(), "ada/fold").partition("@")[0]
    branch = hub.revisions["ada/fold"][hub.branches["ada/fold"]["main"]]
    branch |= {"model.py": b"raise SystemExit", "weights.bin": b"\x80\x04.", "a/plan.json": b"{}"}
    vitfold.load(name)
    there = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert not there & {"model.py", "weights.bin", "README.md"}


def test_without_a_network_what_was_fetched_is_there(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    vitfold.push(digits(), "ada/fold")
    expected = answers(vitfold.load("hub:ada/fold"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert torch.equal(answers(vitfold.load("hub:ada/fold")), expected)
    assert len(hub.asked) == asked
    with pytest.raises(PlanError, match="hub:ada/other cannot be fetched"):
        vitfold.load("hub:ada/other")


def test_mistakes_are_one_line(hub: Hub, tmp_path: Path) -> None:
    model = digits()
    vitfold.push(model, "ada/fold")
    hub.create("ada/empty", private=False)
    mistakes: list[tuple[Any, str]] = [
        (lambda: vitfold.load("hub:fold"), r"'hub:fold': expected hub:USER/NAME"),
        (lambda: vitfold.load("hub:ada/none"), "hub:ada/none cannot be fetched"),
        (lambda: vitfold.load("hub:ada/fold@none"), "hub:ada/fold@none cannot be fetched"),
        (lambda: vitfold.load("hub:ada/empty"), r"has no plan\.json"),
        (lambda: vitfold.save(model, "hub:ada/fold"), r"write there by vitfold\.push"),
        (lambda: vitfold.push(model, "fold"), "expected hub:USER/NAME"),
        (lambda: vitfold.push(model, "ada/fold@main"), "names a revision"),
        (lambda: vitfold.push(tmp_path, "ada/fold"), r"has no plan\.json"),
    ]
    for call, words in mistakes:
        with pytest.raises(PlanError, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)
    hub.token = "another"
    with pytest.raises(PlanError, match="cannot be written") as raised:
        vitfold.push(model, "ada/fold")
    assert "\n" not in str(raised.value)
    hub.token = None
    vitfold.push(model, "ada/mine", private=True)
    assert hub.private == {"ada/mine"}


def test_the_command(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vitfold.save(digits(), tmp_path / "plan")
    (tmp_path / "plan" / "README.md").write_text('vitfold.load("this directory")\n')
    (tmp_path / "plan" / "other.txt").write_text("private")
    assert vitfold_(monkeypatch, "push", tmp_path / "plan", "ada/fold") == 0
    assert "hub:ada/fold@" in capsys.readouterr().out
    files = hub.revisions["ada/fold"][hub.branches["ada/fold"]["main"]]
    assert set(files) == {"plan.json", "README.md"}
    assert files["README.md"] == b'vitfold.load("hub:ada/fold")\n'
    photo = next(pictures(tmp_path / "photos").rglob("*.png"))
    drawn = tmp_path / "drawn"
    given = ("trace", "digits", photo, "--plan", "hub:ada/fold", "--output", drawn)
    assert vitfold_(monkeypatch, *given) == 0
    assert vitfold_(monkeypatch, "push", tmp_path / "none", "ada/fold") == 2
    assert "is no directory" in capsys.readouterr().err
