"""Sharpness of the minimum that a model lies in."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitfold.errors import DataError, missing, one_line
from vitfold.tokens.modes import evaluating
from vitfold.tools.answers import logits
from vitfold.tools.measure import Progress
from vitfold.tools.validate import Batch


def sharpness(
    model: nn.Module,
    batches: Sequence[Batch],
    tolerance: float = 1e-2,
    progress: Progress = lambda: None,
) -> float:
    """The largest eigenvalue of the Hessian of the loss on these images.

    What merges with what is taken as it is: it has no slope.
    tolerance: relative, of the eigenvalue.
    progress: called for every product with the Hessian.
    """
    if not 0 < tolerance < 1:
        raise DataError(f"tolerance={tolerance!r}: expected a number between 0 and 1")
    try:
        from curvlinops import HessianLinearOperator
        from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
    except ImportError:
        raise missing("curvlinops-for-pytorch", "train") from None
    device = next(model.parameters()).device
    data = [(images.to(device), labels.to(device)) for images, labels in batches]
    weights = [p for p in model.parameters() if p.requires_grad]
    # Only plain attention can be differentiated twice.
    with evaluating(model), sdpa_kernel(SDPBackend.MATH):
        hessian: Any = HessianLinearOperator(
            _Logits(model), nn.CrossEntropyLoss(), weights, data, check_deterministic=False
        )
        plain = hessian.to_scipy()

        def product(vector: Any) -> Any:
            progress()
            return plain.matvec(vector)

        counted = LinearOperator(plain.shape, matvec=product, dtype=plain.dtype)
        start = torch.randn(plain.shape[0], generator=torch.Generator().manual_seed(0)).numpy()
        try:
            values, _ = eigsh(counted, k=1, which="LA", tol=tolerance, v0=start)
        except ArpackError as error:
            raise DataError(
                f"the loss has no curvature on these images, or is no number: {one_line(error)}"
            ) from error
    return float(values[0])


class _Logits(nn.Module):
    """A model that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`[B, classes]`."""
        return logits(self.model, images)
