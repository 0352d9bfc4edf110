"""Every model of timm's registry: folded, or refused with its class and a reason."""

import runpy
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.compare import check_nothing_to_reduce, check_twin
from support.models import CELLS, images, registered

import vitfold
from vitfold.errors import UnsupportedModel
from vitfold.folding.families import families, family_of
from vitfold.folding.families.table import UNDESCRIBED, Group

TESTED = "1.0.31"
"""The version of timm whose registry is told apart name by name."""

ISOTROPIC = (
    "beit",
    "deit",
    "eva",
    "naflexvit",
    "vision_transformer",
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "vitamin",
)

ENCODERS = ("cait", "deepseek_vit", "gemma4_vit", "qwen3_vit")
"""Those that `test_timm_others.py` looks at."""

FOLDABLE = [name for module in ISOTROPIC for name in timm.list_models(module=module)]

WINDOWED = ("vision_transformer_sam",)
"""Those that `test_windowed.py` looks at."""

OTHERS = [name for module in ENCODERS + WINDOWED for name in timm.list_models(module=module)]


class Made(Exception):
    """Stops an entry point of timm where it would build a model."""


@pytest.fixture
def create(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], type]:
    """The class that an entry point builds, without building it."""

    def stop(cls: type, *_: Any, **__: Any) -> None:
        raise Made(cls)

    def make(name: str) -> type:
        # Of its module alone: hybrids first make another model, which they embed images with.
        module = sys.modules[timm.models.model_entrypoint(name).__module__]
        with monkeypatch.context() as patch, torch.device("meta"):
            patch.setattr(module, "build_model_with_cfg", stop)
            with pytest.raises(Made) as stopped:
                timm.create_model(name)
        return stopped.value.args[0]

    return make


def test_every_registered_name_is_told_apart(create: Callable[[str], type]) -> None:
    message = families()
    verdicts = {name: f for f in (*message.folded, *message.refused) for name in f.names}
    for name in timm.list_models():
        cls, verdict = create(name), verdicts[name]
        folds = family_of(cls) is not None or cls.__name__.endswith("VitClassifier")
        assert folds == (verdict.reason is None), name
        if verdict.reason is None:
            assert verdict.kind == cls.__name__
            assert verdict.module in ISOTROPIC + ENCODERS + WINDOWED


def of_timm(families: tuple[Group, ...]) -> list[Group]:
    return [family for family in families if family.library == "timm"]


def test_families_list_every_name_once() -> None:
    message = families()
    names = [n for f in of_timm(message.folded + message.refused) for n in f.names]
    assert sorted(names) == sorted(timm.list_models())


@pytest.mark.skipif(timm.__version__ != TESTED, reason=f"counted in timm {TESTED}")
def test_how_many_fold() -> None:
    message = families()
    folded, refused = of_timm(message.folded), of_timm(message.refused)
    assert sum(len(f.names) for f in folded) == len(FOLDABLE + OTHERS) == 336
    assert sum(len(f.names) for f in refused) == 1035
    assert all(f.reason and f.reason != UNDESCRIBED for f in refused)


def test_families_print_as_a_table() -> None:
    message = families()
    text = str(message)
    assert text == repr(message)
    assert "vision_transformer_relpos" in text
    assert "windows" in text
    with pytest.raises(AttributeError):
        message.folded = ()


def test_the_page_is_up_to_date() -> None:
    root = Path(__file__).parents[3]
    page = (root / "docs" / "families.md").read_text(encoding="utf-8")
    installed = f"timm {timm.__version__} and transformers {version('transformers')}"
    if installed not in page:
        pytest.skip(f"the page was not written from {installed}")
    written = runpy.run_path(str(root / "scripts" / "write_families.py"))["page"]()
    assert written == page, "run scripts/write_families.py"


REFUSED = {f.module: min(f.names, key=len) for f in of_timm(families().refused) if f.names}


@pytest.mark.parametrize("name", REFUSED.values())
def test_what_is_refused_is_refused_with_class_and_reason(name: str) -> None:
    check_refused(name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sorted({*timm.list_models()} - {*FOLDABLE, *OTHERS}))
def test_every_other_name_is_refused(name: str) -> None:
    check_refused(name)


def check_refused(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(UnsupportedModel) as refusal:
        vitfold.fold(model, "tome", r=1)
    cls = type(model)
    assert f"{cls.__module__}.{cls.__qualname__} cannot be folded: it" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_plain_vision_transformer_folds(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, depth=2)
    vitfold.fold(model, "tome", r=8)
    assert len(vitfold.folded(model).schedule) == 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FOLDABLE)
def test_every_isotropic_name_folds(name: str) -> None:
    model = registered(name)
    check_nothing_to_reduce(model, images(model))
    check_twin(model, images(model), vitfold.ToMe(r=CELLS))
