"""The loss of a training: on labels, on what a teacher says, and what a method adds."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.folding.calls import watch
from vitfold.folding.run import Run
from vitfold.tools.answers import answers, cross_entropy
from vitfold.train.recipe import Distillation


class Objective(nn.Module):
    """A model with its loss: images and labels in, a loss out.

    Labels are classes, of images `[B]` or of pixels `[B, H, W]`, or shares of classes
    `[B, classes]`. The teacher is no part of what is trained, moved or saved with it.
    """

    def __init__(
        self,
        model: nn.Module,
        smoothing: float = 0.0,
        distill: Distillation | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.smoothing = smoothing
        self.distill = distill
        self.teachers = [] if teacher is None else [teacher.eval()]
        self.figures: dict[str, Any] = {}

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of a batch. What its method logs of it is in `figures`."""
        with watch() as runs:
            student = answers(self.model, images)
        loss = cross_entropy(student, labels, self.smoothing)
        for run in runs:
            loss = loss + self._methods_own(run, student.detach(), labels)
        if self.distill is None:
            return loss
        with torch.no_grad():
            teacher = answers(self.teachers[0], images)
        return loss + self.distill.alpha * distillation(self.distill, student, teacher)

    def _methods_own(self, run: Run, student: Tensor, labels: Tensor) -> Tensor | float:
        """What a method that learns adds to the loss."""
        if run.learned is None:
            return 0.0
        self.figures = run.learned.figures(run)
        if labels.dim() == 1:
            self.figures["top1"] = float((student.argmax(dim=1) == labels).double().mean())
        return run.learned.loss(run)


def distillation(how: Distillation, student: Tensor, teacher: Tensor) -> Tensor:
    """How far the student is from its teacher."""
    if how.kind == "hard":
        return F.cross_entropy(student, teacher.argmax(dim=1))
    t = how.temperature
    ours, theirs = F.log_softmax(student / t, dim=1), F.log_softmax(teacher / t, dim=1)
    apart = F.kl_div(ours, theirs, reduction="sum", log_target=True)
    return apart * t**2 / student.numel()  # a mean over logits, whose gradients keep their scale
