"""The errors that docs/questions.md quotes are those that are raised."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from support import pages
from support.models import registered
from torch import Tensor, nn

import vitfold
from vitfold.errors import missing
from vitfold.exporting.verify import _refuse

QUOTED = re.findall(r"\*\*`([^`]+)`\*\*", pages.text("docs/questions.md"))
"""Two points stand for what differs."""


def small(**options: int) -> nn.Module:
    return registered("vit_tiny_patch16_224", **options)


def pyramid() -> nn.Module:
    return timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, depths=(1, 1, 1, 1))


def noise(model: nn.Module, side: int = 32) -> Tensor:
    return torch.randn(2, 3, side, side)


def another() -> object:
    vitfold.save(vitfold.fold(small(), "tome", r=2), "plan")
    return vitfold.load("plan", small(embed_dim=96))


def graph() -> object:
    model = vitfold.fold(small(), "wardcut", flops=0.9)
    return vitfold.export(model, "served", target="torch", images=noise(model))


def extra() -> None:
    raise missing("openvino", "openvino")


RAISED: list[Callable[[], object]] = [
    lambda: vitfold.fold(pyramid(), "ward", flops=0.6),
    lambda: vitfold.fold(nn.Sequential(nn.Linear(2, 2)), "ward", flops=0.6),
    lambda: vitfold.fold(torch.compile(small()), "ward", flops=0.6),
    extra,
    graph,
    lambda: vitfold.fold(small(), "tome", r=1000),
    lambda: vitfold.fold(small(), "tome", flops=0.01),
    lambda: vitfold.fold(small(), "tome", r=2)(noise(small(), 50)),
    another,
    lambda: vitfold.export(small(), "served", target="openvino", int8=True),
    lambda: _refuse("it", 0, {"logits": torch.zeros(1, 2)}, {"logits": torch.ones(1, 2)}),
]
"""What raises the quoted errors, in the order of the page."""


def test_every_quoted_error_has_one_that_raises_it() -> None:
    assert len(QUOTED) == len(RAISED)


@pytest.mark.parametrize(("quoted", "provoke"), [*zip(QUOTED, RAISED, strict=False)])
@pytest.mark.filterwarnings("ignore")
def test_an_error_reads_as_it_is_quoted(
    quoted: str, provoke: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(vitfold.VitfoldError) as error:
        provoke()
    words = [re.escape(part.strip()) for part in quoted.split("..")]
    assert re.search(".*".join(words), str(error.value)), str(error.value)
