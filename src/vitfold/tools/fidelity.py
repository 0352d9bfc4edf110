"""Fidelity: how near a folded model stays to the dense one, on images without labels."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.errors import DataError
from vitfold.folding.fold import clone
from vitfold.tokens.modes import evaluating, mixed
from vitfold.tools.looks import Look, look
from vitfold.tools.measure import Progress
from vitfold.tools.validate import CONFIDENT, interval

Images = Tensor | Iterable[Tensor | Sequence[Tensor]]
"""`[N, C, H, W]`, or batches of that; of batches with labels, the labels are left out."""

NEIGHBOURS = (1, 10)
"""Among so many of the nearest images the dense model's are looked for."""

WORST = 0.1
"""The share of images that is looked at as the worst."""

PIECE = 1024
"""How many images are compared with all others at a time."""


class Estimate(NamedTuple):
    """A mean over images, and its 95 % interval."""

    mean: float
    low: float
    high: float


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
    """

    images: int
    cosine: Estimate | None = None
    cosine_worst: float | None = None
    recall1: Estimate | None = None
    recall10: Estimate | None = None
    dense_cosine: Estimate | None = None
    agreement: Estimate | None = None
    kl: Estimate | None = None

    def to_json(self) -> dict[str, Any]:
        """The figures by name; the ends of intervals as `cosine_low` and `cosine_high`."""
        row: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Estimate):
                row |= {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
            elif value is not None:
                row[name] = value
        return row


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
    comparison = Comparison(model, clone(model) if dense is None else dense, device, amp)
    for batch in _batches(images, batch_size):
        comparison.update(batch)
        progress()
    return comparison.result()


def _batches(images: Images, batch_size: int) -> Iterator[Tensor]:
    for batch in images.split(batch_size) if isinstance(images, Tensor) else images:
        yield batch if isinstance(batch, Tensor) else batch[0]


class Comparison:
    """Runs both models over batches, and keeps of every image what fidelity is made of."""

    def __init__(
        self,
        model: nn.Module,
        dense: nn.Module,
        device: torch.device | None = None,
        amp: torch.dtype | None = None,
    ) -> None:
        self.models = model, dense
        self.device = device or next(model.parameters()).device
        self.amp = amp
        self.embeddings: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.figures: dict[str, list[Tensor]] = {}
        self.images = 0

    def update(self, images: Tensor) -> None:
        """Compare the models on one batch."""
        images = images.to(self.device)
        ours, dense = (self._look(model, images) for model in self.models)
        self.images += len(images)
        for embeddings, each in zip(self.embeddings, (ours, dense), strict=True):
            if each.embedding is not None:
                embeddings.append(each.embedding.float().cpu())
        for name, values in _compared(ours, dense).items():
            self.figures.setdefault(name, []).append(values.double().cpu())

    def _look(self, model: nn.Module, images: Tensor) -> Look:
        with torch.inference_mode(), evaluating(model), mixed(self.device, self.amp):
            answer = look(model, images)
        for output in (answer.embedding, answer.logits, answer.dense):
            if output is not None and output.isnan().any():
                raise DataError("the model gives NaN for an image: are its weights numbers?")
        return answer

    def result(self) -> Fidelity:
        """What all batches so far come to."""
        if not self.images:
            raise DataError("no images: fidelity needs some, a hundred or more")
        figures = {name: torch.cat(values) for name, values in self.figures.items()}
        cosine = figures.get("cosine")
        ours, dense = (torch.cat(rows) if rows else None for rows in self.embeddings)
        recalls: dict[str, Estimate | None] = {}
        if ours is not None and dense is not None:
            recalls = {f"recall{k}": _recall(ours, dense, k) for k in NEIGHBOURS}
        return Fidelity(
            images=self.images,
            cosine=_mean(cosine, -1, 1),
            cosine_worst=None if cosine is None else _worst(cosine),
            dense_cosine=_mean(figures.get("dense_cosine"), -1, 1),
            agreement=_share(figures.get("agreement")),
            kl=_mean(figures.get("kl"), 0, math.inf),
            **recalls,
        )


def _compared(ours: Look, dense: Look) -> dict[str, Tensor]:
    """`[B]` by name: the figures of every image."""
    figures: dict[str, Tensor] = {}
    if ours.embedding is not None and dense.embedding is not None:
        figures["cosine"] = _cosine(ours.embedding, dense.embedding, dim=1)
    if ours.dense is not None and dense.dense is not None:
        places = _cosine(ours.dense, dense.dense, dim=ours.channels)
        figures["dense_cosine"] = places.flatten(1).mean(dim=1)
    if ours.logits is not None and dense.logits is not None:
        same = ours.logits.argmax(dim=1) == dense.logits.argmax(dim=1)
        figures["agreement"] = same.double().flatten(1).mean(dim=1) if same.dim() > 1 else same
        figures["kl"] = _divergence(ours.logits, dense.logits)
    return figures


def _cosine(a: Tensor, b: Tensor, dim: int) -> Tensor:
    return F.cosine_similarity(a.double(), b.double(), dim=dim)


def _divergence(ours: Tensor, dense: Tensor) -> Tensor:
    """`[B]`: the divergence of one's probabilities from the other's, a mean over places."""
    log_ours, log_dense = (x.double().log_softmax(dim=1) for x in (ours, dense))
    each = F.kl_div(log_ours, log_dense, reduction="none", log_target=True).sum(dim=1)
    return each.flatten(1).mean(dim=1) if each.dim() > 1 else each


def _mean(values: Tensor | None, least: float, most: float) -> Estimate | None:
    """The mean of values within bounds, with a normal interval."""
    if values is None:
        return None
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, least, most)  # of one image nothing is known of the others
    half = CONFIDENT * float(values.std()) / math.sqrt(len(values))
    return Estimate(mean, max(least, mean - half), min(most, mean + half))


def _share(values: Tensor | None) -> Estimate | None:
    """The mean of shares; of yes and no, Wilson's interval, which holds at the ends too."""
    if values is None or not bool(((values == 0) | (values == 1)).all()):
        return _mean(values, 0, 1)
    hits = int(values.sum())
    return Estimate(hits / len(values), *interval(hits, len(values)))


def _worst(cosine: Tensor) -> float:
    count = max(1, math.ceil(WORST * len(cosine)))
    return float(cosine.sort().values[:count].mean())


def _recall(ours: Tensor, dense: Tensor, k: int) -> Estimate | None:
    """How many of the `k` nearest images by dense embeddings are so by ours."""
    if len(ours) <= k:
        return None
    near = [_nearest(F.normalize(rows.double(), dim=1), k) for rows in (ours, dense)]
    both = (near[0].unsqueeze(2) == near[1].unsqueeze(1)).any(dim=2)
    return _share(both.double().mean(dim=1))


def _nearest(rows: Tensor, k: int) -> Tensor:
    """`[N, k]`: the images of highest cosine to every image, without itself."""
    nearest = []
    for start in range(0, len(rows), PIECE):
        scores = rows[start : start + PIECE] @ rows.T
        scores.diagonal(start).fill_(-math.inf)
        nearest.append(scores.topk(k, dim=1).indices)
    return torch.cat(nearest)
