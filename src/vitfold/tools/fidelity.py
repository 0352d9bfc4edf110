"""Fidelity: how near a folded model stays to the dense one, on images without labels."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.errors import DataError
from vitfold.folding.fold import clone
from vitfold.tokens.modes import evaluating, mixed
from vitfold.tools.intervals import Estimate, mean_of, share_of
from vitfold.tools.looks import Look, look
from vitfold.tools.measure import Progress
from vitfold.tools.overlap import iou, relative

Images = Tensor | Iterable[Tensor | Sequence[Tensor]]
"""`[N, C, H, W]`, or batches of that; of batches with labels, the labels are left out."""

NEIGHBOURS = (1, 10)
"""Among so many of the nearest images the dense model's are looked for."""

WORST = 0.1
"""The share of images that is looked at as the worst."""

PIECE = 1024
"""How many images are compared with all others at a time."""


FIGURES = {
    "cosine": "cosine of embeddings",
    "cosine_worst": "of the worst tenth",
    "recall1": "recall@1",
    "recall10": "recall@10",
    "dense_cosine": "cosine of dense features",
    "agreement": "same class",
    "kl": "KL divergence",
    "abs_rel": "relative difference of depth",
    "iou": "IoU of masks",
}
"""What its figures are called."""


@dataclass(frozen=True)
class Fidelity:
    """A folded model against the dense one; None where the model has no such output.

    cosine: of embeddings, image by image: what the model pools or projects; of a classifier, what
        its head reads.
    cosine_worst: the mean cosine of the worst tenth of the images.
    recall1, recall10: the share of the dense model's nearest neighbours among these images, by
        embeddings, that are nearest in the folded model too; None where there are too few images.
    dense_cosine: of dense features or maps, place by place.
    agreement: the share of images, or of places of a map, of the same likeliest class.
    kl: the divergence of the folded classifier's probabilities from the dense one's, in nats.
    abs_rel: of depth, the absolute difference as a share of the dense depth, a mean over pixels.
    iou: of masks, or of the classes of pixels, the intersection with the dense ones over the union,
        a mean over masks, or over the classes of an image.
    """

    images: int
    cosine: Estimate | None = None
    cosine_worst: float | None = None
    recall1: Estimate | None = None
    recall10: Estimate | None = None
    dense_cosine: Estimate | None = None
    agreement: Estimate | None = None
    kl: Estimate | None = None
    abs_rel: Estimate | None = None
    iou: Estimate | None = None

    def to_json(self) -> dict[str, Any]:
        """The figures by name; the ends of intervals as `cosine_low` and `cosine_high`."""
        row: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Estimate):
                row |= {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
            elif value is not None:
                row[name] = value
        return row

    def rows(self) -> list[list[str]]:
        """For a table: what every figure is called, the figure, and its interval where it has
        one."""
        figures = {words: getattr(self, name) for name, words in FIGURES.items()}
        return [_row(words, value) for words, value in figures.items() if value is not None]

    @classmethod
    def of_json(cls, row: Mapping[str, Any]) -> "Fidelity":
        """What `to_json` wrote."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            if f"{field.name}_low" in row:
                ends = (row[f"{field.name}_{end}"] for end in ("low", "high"))
                values[field.name] = Estimate(row[field.name], *ends)
            elif field.name in row:
                values[field.name] = row[field.name]
        return cls(**values)


def _row(words: str, value: Estimate | float) -> list[str]:
    if not isinstance(value, Estimate):
        return [words, f"{value:.4f}", ""]
    mean, low, high = (f"{each:.4f}" for each in value)
    return [words, mean, f"{low} to {high}"]


def fidelity(
    model: nn.Module,
    images: Images,
    *,
    dense: nn.Module | None = None,
    batch_size: int = 64,
    device: torch.device | None = None,
    amp: torch.dtype | None = None,
    progress: Progress = lambda: None,
) -> Fidelity:
    """How near a folded model stays to the dense one on these images; no labels are needed.

    images: `[N, C, H, W]`, prepared for the model, or batches of them, as a DataLoader yields them.
    dense: what it is compared with; by default the same model without its fold.
    progress: called after every batch.
    """
    models = model, clone(model) if dense is None else dense
    on = device or next(models[1].parameters()).device
    comparison = Comparison()
    for batch in _batches(images, batch_size):
        comparison.add(*(_look(each, batch.to(on), amp) for each in models))
        progress()
    return comparison.result()


def _batches(images: Images, batch_size: int) -> Iterator[Tensor]:
    for batch in images.split(batch_size) if isinstance(images, Tensor) else images:
        yield batch if isinstance(batch, Tensor) else batch[0]


def _look(model: nn.Module, images: Tensor, amp: torch.dtype | None) -> Look:
    with torch.inference_mode(), evaluating(model), mixed(images.device, amp):
        return look(model, images)


class Comparison:
    """Keeps of every image what fidelity is made of: what both models say is compared at once."""

    def __init__(self) -> None:
        self.embeddings: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.figures: dict[str, list[Tensor]] = {}
        self.images = 0

    def add(self, ours: Look, dense: Look) -> None:
        """Compare what the models say of one batch."""
        for rows, each in zip(self.embeddings, (ours, dense), strict=True):
            _check_numbers(each)
            if each.embedding is not None:
                rows.append(each.embedding.float().cpu())
        self.images += ours.images
        for name, values in compared(ours, dense).items():
            self.figures.setdefault(name, []).append(values.double().cpu())

    def result(self) -> Fidelity:
        """What all batches so far come to."""
        if not self.images:
            raise DataError("no images: fidelity needs some, a hundred or more")
        figures = self.all
        estimates = {name: ESTIMATES[name](values) for name, values in figures.items()}
        worst = _worst(figures["cosine"]) if "cosine" in figures else None
        return Fidelity(self.images, cosine_worst=worst, **estimates, **self._recalls())

    @property
    def all(self) -> dict[str, Tensor]:
        """`[N]` by name: the figures of every image."""
        return {name: torch.cat(values) for name, values in self.figures.items()}

    def _recalls(self) -> dict[str, Estimate]:
        """The share of the same neighbours, among so many of them as there are images for."""
        if not all(self.embeddings):
            return {}
        ours, dense = (torch.cat(rows) for rows in self.embeddings)
        return {f"recall{k}": _recall(ours, dense, k) for k in NEIGHBOURS if len(ours) > k}


ESTIMATES: dict[str, Callable[[Tensor], Estimate]] = {
    "cosine": partial(mean_of, least=-1, most=1),
    "dense_cosine": partial(mean_of, least=-1, most=1),
    "agreement": share_of,
    "kl": partial(mean_of, least=0, most=math.inf),
    "abs_rel": partial(mean_of, least=0, most=math.inf),
    "iou": partial(mean_of, least=0, most=1),
}
"""How the figures of all images become one."""


def _check_numbers(look: Look) -> None:
    for output in look.parts:
        if output is not None and output.isnan().any():
            raise DataError("the model gives NaN for an image: are its weights numbers?")


def compared(ours: Look, dense: Look) -> dict[str, Tensor]:
    """`[B]` by name: the figures of every image. Of another model or another size of images, what
    has another shape is left out."""
    figures: dict[str, Tensor] = {}
    if (pair := _alike(ours.embedding, dense.embedding)) is not None:
        figures["cosine"] = _cosine(*pair, dim=1)
    if (pair := _alike(ours.dense, dense.dense)) is not None:
        figures["dense_cosine"] = _cosine(*pair, dim=ours.channels).flatten(1).mean(dim=1)
    if (pair := _alike(ours.logits, dense.logits)) is not None:
        same = pair[0].argmax(dim=1) == pair[1].argmax(dim=1)
        figures["agreement"] = same.double().flatten(1).mean(dim=1) if same.dim() > 1 else same
        figures["kl"] = _divergence(*pair)
    if (pair := _alike(ours.depth, dense.depth)) is not None:
        figures["abs_rel"] = relative(*pair)
    if (pair := _alike(ours.masks, dense.masks)) is not None:
        figures["iou"] = iou(*pair)
        if ours.logits is None and pair[0].dim() == 3:  # classes of pixels
            figures["agreement"] = (pair[0] == pair[1]).double().flatten(1).mean(dim=1)
    return figures


def losses(figures: Mapping[str, Tensor]) -> Tensor:
    """`[N]`, of these figures: what is lost of every image. The root of the divergence, or of what
    the cosine lacks: the mean of these themselves would go by the few worst images."""
    if "kl" in figures:
        gap = figures["kl"]
    elif "abs_rel" in figures:
        gap = figures["abs_rel"]
    elif "iou" in figures:
        gap = 1 - figures["iou"]
    else:
        cosine = figures.get("cosine", figures.get("dense_cosine"))
        if cosine is None:
            raise DataError("nothing that the model gives can be compared with the dense model's")
        gap = 1 - cosine
    return gap.double().clamp(min=0).sqrt()


def is_less(ours: Tensor, other: Tensor, surely: bool) -> bool:
    """Whether less is lost of the same images; surely: by more than the standard error."""
    gain = other - ours
    error = float(gain.std(correction=0)) / math.sqrt(len(gain))
    return float(gain.mean()) > (error if surely else 0.0)


def _alike(ours: Tensor | None, dense: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Both, where they can be compared."""
    if ours is None or dense is None or ours.shape != dense.shape:
        return None
    return ours, dense.to(ours.device)


def _cosine(a: Tensor, b: Tensor, dim: int) -> Tensor:
    return F.cosine_similarity(a.double(), b.double(), dim=dim)


def _divergence(ours: Tensor, dense: Tensor) -> Tensor:
    """`[B]`: the divergence of one's probabilities from the other's, a mean over places."""
    log_ours, log_dense = (x.double().log_softmax(dim=1) for x in (ours, dense))
    each = F.kl_div(log_ours, log_dense, reduction="none", log_target=True).sum(dim=1)
    return each.flatten(1).mean(dim=1) if each.dim() > 1 else each


def _worst(cosine: Tensor) -> float:
    count = max(1, math.ceil(WORST * len(cosine)))
    return float(cosine.sort().values[:count].mean())


def _recall(ours: Tensor, dense: Tensor, k: int) -> Estimate:
    """How many of the `k` nearest images by dense embeddings are so by ours."""
    near = [_nearest(F.normalize(rows.double(), dim=1), k) for rows in (ours, dense)]
    both = (near[0].unsqueeze(2) == near[1].unsqueeze(1)).any(dim=2)
    return share_of(both.double().mean(dim=1))


def _nearest(rows: Tensor, k: int) -> Tensor:
    """`[N, k]`: the images of highest cosine to every image, without itself."""
    nearest = []
    for start in range(0, len(rows), PIECE):
        scores = rows[start : start + PIECE] @ rows.T
        scores.diagonal(start).fill_(-math.inf)
        nearest.append(scores.topk(k, dim=1).indices)
    return torch.cat(nearest)
