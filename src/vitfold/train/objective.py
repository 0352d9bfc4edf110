"""What training makes small: the loss on labels, and on what a teacher says."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.train.recipe import Distillation
from vitfold.validate import logits


class Objective(nn.Module):
    """A model with its loss: images and labels in, a loss out.

    Labels are classes `[B]`, or shares of classes `[B, classes]`. The teacher is no part of what
    is trained, moved or saved with it.
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

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of a batch."""
        student = logits(self.model, images)
        loss = F.cross_entropy(student, labels, label_smoothing=self.smoothing)
        if self.distill is None:
            return loss
        with torch.no_grad():
            taught = logits(self.teachers[0], images)
        return loss + self.distill.alpha * distillation(self.distill, student, taught)


def distillation(how: Distillation, student: Tensor, teacher: Tensor) -> Tensor:
    """How far the student is from its teacher."""
    if how.kind == "hard":
        return F.cross_entropy(student, teacher.argmax(dim=1))
    t = how.temperature
    ours, theirs = F.log_softmax(student / t, dim=1), F.log_softmax(teacher / t, dim=1)
    apart = F.kl_div(ours, theirs, reduction="sum", log_target=True)
    return apart * t**2 / student.numel()  # a mean over logits, whose gradients keep their scale
