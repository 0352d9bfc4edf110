"""How near maps of pixels are to each other: depths, masks, classes."""

import torch
from torch import Tensor

NEAR = 0.01
"""Depths below this share of an image's mean count as that: of zero nothing is a share."""


def relative(ours: Tensor, dense: Tensor) -> Tensor:
    """`[B]`: the absolute difference of depths `[B, H, W]`, as a share of the dense ones, a mean
    over pixels."""
    ours, dense = ours.double().flatten(1), dense.double().flatten(1)
    least = NEAR * dense.abs().mean(dim=1, keepdim=True)
    share = (ours - dense).abs() / dense.abs().maximum(least).clamp(min=1e-12)
    return share.mean(dim=1)


def iou(ours: Tensor, dense: Tensor) -> Tensor:
    """`[B]`: intersection over union of masks `[B, K, H, W]`, or of the classes of pixels `[B, H,
    W]`, a mean over those masks or classes that one of the two has; one where neither has any."""
    if ours.dim() == 4:
        ours, dense = ours.flatten(2), dense.flatten(2)
        both, either = ((ours & dense).sum(-1), (ours | dense).sum(-1))
        return _mean(both, either)
    pairs = zip(ours.flatten(1), dense.flatten(1), strict=True)
    return torch.stack([_of_classes(a, b) for a, b in pairs])


def _of_classes(ours: Tensor, dense: Tensor) -> Tensor:
    classes = 1 + int(torch.stack([ours, dense]).max()) if ours.numel() else 1
    same = torch.bincount(ours[ours == dense], minlength=classes)
    all_ = torch.bincount(ours, minlength=classes) + torch.bincount(dense, minlength=classes)
    return _mean(same.unsqueeze(0), (all_ - same).unsqueeze(0))[0]


def _mean(both: Tensor, either: Tensor) -> Tensor:
    """`[B]`: the mean over those of `[B, K]` that there are."""
    there = either > 0
    shares = (both.double() / either.clamp(min=1)).masked_fill(~there, 0)
    number = there.sum(dim=1)
    return (shares.sum(dim=1) / number.clamp(min=1)).where(number > 0, 1.0)
