"""Families of a user's own: the example of the docs, and what is refused."""

import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.compare import near
from support.outside import check, check_dropped
from torch import Tensor, nn

import vitfold
from vitfold.errors import FoldError, ShapeError, UnsupportedModel
from vitfold.folding.families.registry import REGISTRY
from vitfold.methods.plugins import FAMILIES_GROUP, load_plugins

PAGE = Path(__file__).parents[3] / "docs" / "adding-a-family.md"


@pytest.fixture(autouse=True)
def _own_registry() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(REGISTRY)
    torch.compiler.reset()  # what was compiled before makes sizes symbols, and compiling slow
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


@pytest.fixture
def names() -> dict[str, Any]:
    """What the examples of the page define."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    defined: dict[str, Any] = {"__name__": "page"}
    torch.manual_seed(0)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), defined)
    return defined


def create(names: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return names["TinyViT"]().eval()


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_example_is_short(names: dict[str, Any]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    [family] = [
        b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "TinyViT().eval" in b
    ]
    assert len(family.splitlines()) <= 40


@pytest.mark.parametrize(
    "method", [vitfold.ToMe(r=8), vitfold.LGTM(r=8, skip=0), vitfold.ToMe(r=5, cue="v")], ids=str
)
def test_the_example_of_the_page_folds(names: dict[str, Any], method: Any) -> None:
    check(create(names), images(), method)


def test_every_kind_of_method_folds_it(names: dict[str, Any]) -> None:
    model = create(names)
    x = images(3)
    check_dropped(model, x)
    for method in (
        vitfold.EViT(r=[0, 9, 9], blocks=(1, 2)),
        vitfold.LTMP(merge_threshold=0.3),
        vitfold.AViT(),
        vitfold.ToMe(flops=0.7),
    ):
        vitfold.fold(model, method)
        with torch.no_grad():
            near([model(x)], [torch.cat([model(image) for image in x.split(1)])], 1e-4)
    vitfold.fold(model, vitfold.ToMe(r=8))
    assert vitfold.trace(model, x).grid == (8, 8)
    with torch.no_grad():
        near([torch.compile(model, backend="eager", fullgraph=True)(x)], [model(x)])


def test_a_class_has_one_family(names: dict[str, Any]) -> None:
    class Other(vitfold.Family):
        trunks = (names["TinyViT"],)

    with pytest.raises(UnsupportedModel, match=r"page\.TinyViT is described by page\.Tiny already"):
        vitfold.register_family(Other)
    assert vitfold.register_family(names["Tiny"]) is names["Tiny"]  # the same again


@pytest.mark.parametrize(
    ("family", "why"),
    [
        (nn.Linear, "no family: give a subclass"),
        (3, "no family: give a subclass"),
        (type("Empty", (vitfold.Family,), {}), "trunks is empty"),
        (type("Text", (vitfold.Family,), {"trunks": "TinyViT"}), "expected a tuple of classes"),
        (type("Odd", (vitfold.Family,), {"trunks": ("a.B",), "block_types": (3,)}), "block_types="),
    ],
)
def test_what_is_no_family_is_refused(family: Any, why: str) -> None:
    with pytest.raises(UnsupportedModel, match=why):
        vitfold.register_family(family)


def test_halves_that_are_inherited_do_not_leave_out_parts(names: dict[str, Any]) -> None:
    class Plain(names["Tiny"]):  # type: ignore[misc]
        attend, feed = vitfold.Family.attend, vitfold.Family.feed
        trunks = (type("Heir", (names["TinyViT"],), {"__module__": "page"}),)

    vitfold.register_family(Plain)
    with pytest.raises(UnsupportedModel, match="has before, after, attention, which the halves"):
        vitfold.fold(Plain.trunks[0](), "tome", r=2)


def test_what_cannot_be_guessed_is_asked_for(names: dict[str, Any]) -> None:
    model = create(names)
    del model.image_size
    with pytest.raises(ShapeError, match="define `size` in Tiny"):
        vitfold.fold(model, "tome", r=2)


def test_attention_that_is_not_torchs_is_refused_where_it_matters(names: dict[str, Any]) -> None:
    class Own(names["TinyAttention"]):  # type: ignore[misc]
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return self.out(x)  # type: ignore[no-any-return]

    class Family(names["Tiny"]):  # type: ignore[misc]
        trunks = (type("Heir", (names["TinyViT"],), {"__module__": "page"}),)
        attention_types = (Own,)

        def capture(self, attention: Any, cue: str, show: Any) -> dict[str, Any]:
            return {"out": lambda x: (show(x), attention.out(x))[1]}

    vitfold.register_family(Family)
    model = Family.trunks[0]().eval()
    for block in model.layers:
        block.attention = Own(32, 4)
    vitfold.fold(model, vitfold.LTMP(merge_threshold=0.0, prune_threshold=0.1))
    with pytest.raises(UnsupportedModel, match="does not attend by torch's"):
        model(images())


def test_packages_bring_families(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name = value = "later"

        @staticmethod
        def load() -> Any:
            family = type("Later", (vitfold.Family,), {"trunks": ("later.ViT",)})
            return vitfold.register_family(family)

    def installed(group: str) -> list[type[Entry]]:
        return [Entry] if group == FAMILIES_GROUP else []

    monkeypatch.setattr(importlib.metadata, "entry_points", installed)
    load_plugins.cache_clear()
    vitfold.families()
    load_plugins.cache_clear()
    assert REGISTRY["later.ViT"].__name__ == "Later"


def test_an_error_of_a_hook_beside_it_comes_through(names: dict[str, Any]) -> None:
    """What registers a family is no library: its own mistakes are not explained away."""
    exec("def hook(*_):\n    raise ValueError('my own complaint')", names)
    plain = timm.create_model("test_vit").eval()
    for model, side in ((create(names), 32), (plain, 160)):
        vitfold.fold(model, vitfold.ToMe(r=4))
        model.head.register_forward_pre_hook(names["hook"])
        with pytest.raises(ValueError, match=r"^my own complaint$"):
            model(torch.zeros(1, 3, side, side))


def test_families_list_it(names: dict[str, Any]) -> None:
    assert any(group.kind == "TinyViT" for group in vitfold.families().folded)


def test_it_is_told_from_what_has_no_family() -> None:
    with pytest.raises(UnsupportedModel, match=r"describe it to vitfold\.register_family"):
        vitfold.fold(nn.Linear(2, 2), "tome", r=1)
    assert issubclass(FoldError, Exception)
