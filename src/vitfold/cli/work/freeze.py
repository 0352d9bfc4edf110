"""A learned model and its frozen form side by side, as `vitfold freeze` shows them."""

import copy
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from vitfold.cli import show
from vitfold.cli.work.models import written
from vitfold.data import evenly, untouched
from vitfold.errors import DataError
from vitfold.folding.calls import fold_of
from vitfold.folding.fold import clone
from vitfold.saving.models import save_model
from vitfold.segment import SceneSource
from vitfold.segment import score as score_pixels
from vitfold.tokens.modes import evaluating
from vitfold.tools.answers import logits
from vitfold.tools.freeze import check_ragged, freeze
from vitfold.tools.validate import Batch, predict, score

__all__ = ["SceneSource", "check_ragged", "frozen_on", "images", "pixels", "save_model", "written"]

Compare = Callable[[nn.Module], None]
"""Shows how a frozen model stands beside the one that learned and the dense one."""


def frozen_on(learned: nn.Module, batches: Iterable[Batch], on: torch.device) -> nn.Module:
    """A copy with the mean numbers of these images."""
    return freeze(copy.deepcopy(learned), (pixels.to(on) for pixels, _ in batches))


def images(learned: nn.Module, batches: Iterable[Batch]) -> Compare:
    """The comparison on labelled images: of classes, or of embeddings where the model has none."""
    pixels, _ = next(iter(batches), (None, None))
    if pixels is None:
        raise DataError("no images: the dataset is empty")
    return partial(
        _of_classes if _classifies(learned, pixels[:1]) else _of_vectors, learned, batches
    )


def pixels(
    learned: nn.Module, source: SceneSource, limit: int | None, stride: int | None, workers: int
) -> Compare:
    """The comparison on images with a class for every pixel."""
    return partial(_of_pixels, learned, evenly(untouched(learned, source), limit), stride, workers)


def _classifies(model: nn.Module, pixels: Tensor) -> bool:
    on = next(model.parameters()).device
    try:
        with torch.inference_mode(), evaluating(model):
            logits(model, pixels.to(on))
    except DataError:
        return False
    return True


def _candidates(learned: nn.Module, frozen: nn.Module) -> dict[str, nn.Module]:
    return {"dense": clone(learned), "learned": learned, "frozen": frozen}


def _of_classes(learned: nn.Module, batches: Iterable[Batch], frozen: nn.Module) -> None:
    answers, on = {}, next(learned.parameters()).device
    for name, candidate in _candidates(learned, frozen).items():
        with show.bar(name, None) as progress:
            answers[name] = predict(candidate, batches, device=on, progress=progress)
    rows = []
    for name, predictions in answers.items():
        report = score(predictions, answers["dense"])
        span = f"{report.top1_low:.2%} to {report.top1_high:.2%}"
        rows.append([name, f"{report.top1:.2%}", span, f"{report.agreement:.2%}"])
    show.table(str(fold_of(frozen).method), ["", "top-1", "95 %", "agrees with dense"], rows)


def _of_vectors(learned: nn.Module, batches: Iterable[Batch], frozen: nn.Module) -> None:
    vectors = {}
    for name, candidate in _candidates(learned, frozen).items():
        with show.bar(name, None) as progress:
            vectors[name] = _vectors(candidate, batches, progress)
    rows = []
    for name in ("learned", "frozen"):
        cosines = F.cosine_similarity(vectors[name], vectors["dense"])
        rows.append([name, f"{cosines.mean():.4f}", f"{cosines.min():.4f}"])
    columns = ["", "cosine with dense", "the least"]
    show.table(str(fold_of(frozen).method), columns, rows)


def _vectors(model: nn.Module, batches: Iterable[Batch], progress: Callable[[], None]) -> Tensor:
    """`[N, channels]`: what an embedding model makes of images."""
    vectors, on = [], next(model.parameters()).device
    for pixels, _ in batches:
        with torch.inference_mode(), evaluating(model):
            vectors.append(_vector(model(pixels.to(on))).float().cpu())
        progress()
    return torch.cat(vectors)


def _vector(output: object) -> Tensor:
    """One vector an image: of a tensor, or of an output of transformers."""
    if isinstance(output, Tensor):
        return output.flatten(1)
    for name in ("image_embeds", "pooler_output"):
        if isinstance(vector := getattr(output, name, None), Tensor):
            return vector
    if isinstance(hidden := getattr(output, "last_hidden_state", None), Tensor):
        return hidden.mean(1)
    raise DataError(f"{type(output).__name__} holds no embedding: expected a tensor")


def _of_pixels(
    learned: nn.Module,
    scenes: "torch.utils.data.Dataset[tuple[Tensor, Tensor]]",
    stride: int | None,
    workers: int,
    frozen: nn.Module,
) -> None:
    rows = []
    for name, candidate in (("learned", learned), ("frozen", frozen)):
        loaded: DataLoader[tuple[Tensor, Tensor]]
        loaded = DataLoader(scenes, batch_size=None, num_workers=workers)
        with show.bar(name, len(loaded)) as progress:
            report = score_pixels(
                candidate, clone(learned), loaded, stride=stride, progress=progress
            )
        rows.append([name, f"{report.miou:.2%}", f"{report.agreement:.2%}"])
    rows.insert(0, ["dense", f"{report.dense_miou:.2%}", ""])
    show.table(str(fold_of(frozen).method), ["", "mIoU", "agrees with dense"], rows)
