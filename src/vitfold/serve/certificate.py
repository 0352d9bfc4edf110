"""How near the embeddings of a folded model are to the dense one's, on a sample of the corpus."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from vitfold.errors import DataError
from vitfold.folding.fold import clone
from vitfold.serve.embedder import image_side
from vitfold.serve.job import is_dense
from vitfold.serve.listing import in_parts
from vitfold.serve.pool import Pool
from vitfold.serve.work import Work
from vitfold.tools.fidelity import fidelity


def check(model: nn.Module, count: int) -> None:
    """Refuse a sample that says nothing."""
    if count < 0:
        raise DataError(f"certificate={count}: expected a number of images, or 0")
    if count and is_dense(model):
        raise DataError(
            f"certificate={count} compares a folded model with the dense one, and this is dense: "
            "leave it out"
        )


def certified(work: Work, model: nn.Module, count: int, total: int) -> dict[str, Any]:
    """The figures of so many images, evenly spaced, without those that cannot be read."""
    embedder = work.embedder()
    dense = embedder.runtime.dense(image_side(clone(model)))
    with embedder.computing():
        figures = fidelity(
            embedder.served,
            _batches(work, embedder.prepared, count, total),
            dense=dense,
            device=work.device,
            amp=work.settings.lower,
        )
    return {"asked": count, **figures.to_json()}


def _batches(work: Work, prepared: Any, count: int, total: int) -> Iterator[Tensor]:
    pool = Pool(work.preparation, work.workers)
    sample = in_parts(work.open().evenly(count, total), work.settings.batch_size)
    for decoded in pool.stream(sample):
        good = [place for place, reason in enumerate(decoded.reasons) if reason is None]
        if good:
            yield prepared(decoded.pixels[good])
