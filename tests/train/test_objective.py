"""The loss: distillation, and where the teacher comes from."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.training import RECIPE, run, same, small
from torch import nn

import vitfold
from vitfold.train import Distillation, Recipe
from vitfold.train.objective import Objective, distillation


def test_soft_distillation_is_the_divergence_at_a_temperature() -> None:
    student, teacher = torch.randn(2, 5, 7).double().unbind()
    t = 4.0
    p, q = (teacher / t).softmax(1), (student / t).softmax(1)
    expected = (p * (p.log() - q.log())).sum() * t**2 / student.numel()
    result = distillation(Distillation("soft", temperature=t), student, teacher)
    torch.testing.assert_close(result, expected)
    assert float(distillation(Distillation("soft"), student, student)) == pytest.approx(0, abs=1e-9)


def test_hard_distillation_learns_the_best_class() -> None:
    student, teacher = torch.randn(2, 5, 7).unbind()
    expected = F.cross_entropy(student, teacher.argmax(1))
    assert torch.equal(distillation(Distillation("hard"), student, teacher), expected)


def test_the_teacher_is_the_dense_model_and_stays_as_it_is(tmp_path: Path) -> None:
    model = vitfold.fold(small(), "tome", r=4)
    dense = {name: tensor.clone() for name, tensor in small().state_dict().items()}
    visits: list[nn.Module] = []
    original = Objective.__init__

    def spy(self: Objective, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        visits.extend(self.teachers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "__init__", spy)
        run(tmp_path, Recipe(**{**vars(RECIPE), "distill": Distillation()}), model)
    [teacher] = visits
    assert "_vitfold" not in vars(teacher)
    assert same(teacher.state_dict(), dense)
    assert not any(name.startswith("teacher") for name in model.state_dict())
