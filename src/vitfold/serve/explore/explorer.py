"""What is computed for the page: one model, dense and folded in many ways, and photographs.

Nothing here knows of the page. What does not change is not computed again: folds are kept by method
and budget, and with every photograph what was seen of it, for as long as somebody has it.
"""

import hashlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from vitfold.data.inputs import normalize
from vitfold.errors import DataError, MethodError, VitfoldError, one_line
from vitfold.folding.calls import fold_of, folds, watch
from vitfold.folding.families import find
from vitfold.folding.fold import clone, fold
from vitfold.methods import create_method, ready
from vitfold.serve.decoding import Decoder, Preparation
from vitfold.serve.explore.cache import Cache
from vitfold.serve.explore.labels import class_names
from vitfold.serve.explore.uploads import Limits, name_of, read_upload
from vitfold.tokens.modes import evaluating
from vitfold.tools.by_block import flops_by_block
from vitfold.tools.fidelity import compared
from vitfold.tools.looks import Look, look
from vitfold.tools.measure import flops
from vitfold.tools.trace import Trace, trace_of
from vitfold.tools.wants import data_config

OWN = "as saved"
"""The fold that a model came with, among the methods."""

LEAST, MOST, BUDGET = 0.3, 1.0, 0.6
"""Ends of the budget, a share of the dense FLOPs, and where it begins."""

FOLDS, PHOTOGRAPHS = 256, 32
"""How much is kept: folds (which share the weights of the model), and photographs."""

SIGHTS, PICTURES = 16, 64
"""How much is kept of each photograph: folds of it, and pictures."""


@dataclass(frozen=True)
class Photograph:
    """A photograph as the model sees it.

    key: the same for the same pixels.
    pixels: `[C, H, W]` in 8 bits.
    """

    key: str
    name: str
    pixels: Tensor = field(repr=False, compare=False)


@dataclass(frozen=True)
class Pick:
    """A fold that is asked for: a method by name, and its share of the dense FLOPs."""

    method: str
    share: float = BUDGET

    def __str__(self) -> str:
        return OWN if self.method == OWN else f"{self.method} at {self.share:g}"


@dataclass(frozen=True, eq=False)
class Sight:
    """What a folded model makes of one photograph.

    figures: how near it is to the dense model, as `vitfold.fidelity` calls the figures.
    """

    trace: Trace
    look: Look
    figures: dict[str, float]

    def tokens(self, block: int) -> int:
        """How many leave a block."""
        return self.trace.counts[block][0]

    @property
    def first(self) -> int:
        """How many enter the first block."""
        return self.trace.maps[0].tokens


@dataclass(frozen=True)
class Costs:
    """Floating point operations of one image.

    dense, folded: of every block.
    share: of all that the dense model does.
    """

    dense: list[int]
    folded: list[int]
    share: float


class Album:
    """What was made of one photograph."""

    def __init__(self) -> None:
        self.dense: Cache[None, Look] = Cache(1)
        self.sights: Cache[Pick, Sight] = Cache(SIGHTS)
        self.pictures: Cache[tuple[Pick, int], Image.Image] = Cache(PICTURES)
        self.costs: Cache[Pick, Costs] = Cache(SIGHTS)


class Explorer:
    """A model to explore; one that came folded keeps its own fold among the methods."""

    def __init__(self, model: nn.Module, limits: Limits | None = None) -> None:
        self.dense = clone(model).eval()
        self.given = model.eval() if folds(model) else None
        self.limits = limits or Limits()
        _check_plane(model)
        self.config = data_config(model)
        self.decoder = Decoder(Preparation(self.config))
        self.names = class_names(self.dense)
        self._folds: Cache[Pick, nn.Module | MethodError] = Cache(FOLDS)
        self._albums: Cache[str, Album] = Cache(PHOTOGRAPHS)
        self._costs: Cache[Pick, Costs] = Cache(FOLDS)
        self._blocks: Cache[None, tuple[list[int], int]] = Cache(1)

    @property
    def methods(self) -> list[str]:
        """Methods that reach a budget without training; first the fold that the model came with.
        What has to learn or to be calibrated first is looked at as a saved fold."""
        return ([OWN] if self.given is not None else []) + ready()

    @property
    def depth(self) -> int:
        """How many blocks there are."""
        return find(self.dense).depth

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.dense.parameters()).device

    def upload(self, path: Path) -> Photograph:
        """The photograph in a file, within the limits; a DataError says why not."""
        return self.photograph(read_upload(path, self.limits), name_of(path))

    def photograph(self, picture: Image.Image, name: str) -> Photograph:
        """A picture as the model sees it. When nobody has it any more, all that was made of it
        goes too."""
        try:
            prepared, _ = self.decoder.prepared(picture, name)
        except DataError:
            raise
        except Exception as error:  # what resizes raises what it likes
            raise DataError(f"{name} cannot be prepared: {one_line(error)}") from error
        key = hashlib.sha256(prepared.tobytes()).hexdigest()
        photograph = Photograph(key, name, torch.from_numpy(prepared))
        weakref.finalize(photograph, self._albums.drop, key).atexit = False
        return photograph

    def _album(self, photograph: Photograph) -> Album:
        return self._albums.get(photograph.key, Album)

    def folded(self, pick: Pick) -> nn.Module:
        """The model folded so; a MethodError says why it cannot be."""
        if pick.method == OWN and self.given is not None:
            return self.given
        model = self._folds.get(pick, lambda: self._fold(pick))
        if isinstance(model, MethodError):
            raise model
        return model

    def _fold(self, pick: Pick) -> nn.Module | MethodError:
        """The model folded so, or why it cannot be, which takes as long to find out."""
        try:
            method = create_method(pick.method, {"flops": pick.share})
            return fold(clone(self.dense), method)
        except MethodError as error:
            return error.with_traceback(None)

    def seen(self, photograph: Photograph) -> Look:
        """What the dense model says of a photograph."""
        album = self._album(photograph)
        return album.dense.get(None, lambda: self._look(self.dense, photograph))

    def sight(self, photograph: Photograph, pick: Pick) -> Sight:
        """What a folded model makes of a photograph."""
        return self._album(photograph).sights.get(pick, lambda: self._sight(photograph, pick))

    def _sight(self, photograph: Photograph, pick: Pick) -> Sight:
        model = self.folded(pick)
        with watch() as runs:
            ours = self._look(model, photograph)
        figures = compared(ours, self.seen(photograph))
        trace = trace_of(runs[-1], model, self._batch(photograph))
        return Sight(trace, ours, {name: float(values[0]) for name, values in figures.items()})

    def _look(self, model: nn.Module, photograph: Photograph) -> Look:
        with torch.inference_mode(), evaluating(model):
            return look(model, self._batch(photograph))

    def _batch(self, photograph: Photograph) -> Tensor:
        return normalize(photograph.pixels[None].to(self.device), self.config)

    def picture(self, photograph: Photograph, pick: Pick, block: int) -> Image.Image:
        """The tokens of a photograph after a block."""
        pictures = self._album(photograph).pictures
        return pictures.get((pick, block), lambda: self._draw(photograph, pick, block))

    def _draw(self, photograph: Photograph, pick: Pick, block: int) -> Image.Image:
        trace = self.sight(photograph, pick).trace
        return trace.draw(photograph.pixels.float() / 255, block=block)

    def costs(self, photograph: Photograph, pick: Pick) -> Costs:
        """What every block costs: of a method with fixed numbers, the same for all photographs."""
        ragged = fold_of(self.folded(pick)).method.ragged
        costs = self._album(photograph).costs if ragged else self._costs
        return costs.get(pick, lambda: self._cost(photograph, pick))

    def _cost(self, photograph: Photograph, pick: Pick) -> Costs:
        images, model = self._batch(photograph), self.folded(pick)
        blocks, total = self._blocks.get(None, lambda: self._dense_cost(images))
        folded = flops_by_block(model, images)
        share = (total - sum(blocks) + sum(folded)) / total
        return Costs(blocks, folded, share)

    def _dense_cost(self, images: Tensor) -> tuple[list[int], int]:
        """Of every block, and of all: in a fold that removes nothing."""
        idle = fold(clone(self.dense), "tome", r=0)
        return flops_by_block(idle, images), flops(self.dense, images)


def refusal(error: Exception) -> str:
    """What an error says to somebody at the page."""
    return str(error) if isinstance(error, VitfoldError) else one_line(error)


def _check_plane(model: nn.Module) -> None:
    """Refuse a model whose tokens are no plane of patches, which has no picture."""
    grid: Sequence[int] | None = find(model).layout().grid
    if grid is None or len(grid) != 2:
        axes = "none" if grid is None else " x ".join(map(str, grid))
        raise DataError(
            f"the patches of this {type(find(model).trunk).__name__} form no plane (their grid: "
            f"{axes}): explore draws planes; vitfold.trace tells the counts of others"
        )
