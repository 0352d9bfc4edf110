"""Candidates of a sweep: folds of a model, baselines for them, and smaller models."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.data import Renormalized
from vitfold.errors import MethodError
from vitfold.folding.calls import fold_of, folds
from vitfold.folding.families import find
from vitfold.folding.flops import cost
from vitfold.folding.fold import clone, fold
from vitfold.folding.inputs import Inputs
from vitfold.lab.styles import AT_RANDOM, SMALLER_IMAGES
from vitfold.methods import Base, create_method, ready
from vitfold.tokens.modes import recording
from vitfold.tools.baselines import DENSE
from vitfold.tools.digest import fingerprint
from vitfold.tools.looks import Around
from vitfold.tools.measure import batch_of, flops

SMALLER_MODEL = "smaller model"

Key = tuple[str, float, str]


@dataclass(frozen=True)
class Candidate:
    """A model to compare that costs less than the dense one, built when its turn comes.

    flops: the share of the dense FLOPs that it is asked for; 0 where nobody asks for one.
    source: where it comes from, if it is made of other weights.
    """

    method: str
    flops: float
    make: Callable[[], nn.Module]
    source: str = ""

    @property
    def key(self) -> Key:
        """Method, share and source: what tells this candidate from others."""
        return self.method, self.flops, self.source


def candidates(
    model: nn.Module,
    methods: Sequence[str],
    shares: Sequence[float],
    options: Mapping[str, Any] | None = None,
) -> list[Candidate]:
    """The dense model, and every method at every share."""
    for name in methods:
        if name not in ready():
            raise MethodError(
                f"{name} is no method for a sweep over shares: one that learns is trained for each "
                f"by `vitfold train`, and then given as trained; without, there are {ready()}"
            )
    folds_ = [_at_share(model, name, share, options or {}) for name in methods for share in shares]
    return [Candidate(DENSE, 1.0, lambda: clone(model)), *folds_]


def _at_share(model: nn.Module, name: str, share: float, options: Mapping[str, Any]) -> Candidate:
    return Candidate(name, share, _folding(model, name, {**options, "flops": share}))


def _folding(model: nn.Module, name: str, options: Mapping[str, Any]) -> Callable[[], nn.Module]:
    return functools.partial(_fold, model, functools.partial(create_method, name, options))


def _fold(model: nn.Module, method: Callable[[], Base]) -> nn.Module:
    return fold(clone(model), method())


# Baselines: what a method is worth nothing without beating


def baselines(
    model: nn.Module, shares: Sequence[float], skip: Callable[[str], None] = lambda _: None
) -> list[Candidate]:
    """What costs the same with no thought: as many tokens dropped at random from every block, and
    the model on smaller images. Which of them a model cannot have goes to `skip`, in words."""
    smaller = smaller_images(model, shares)
    if shares and not smaller:
        trunk = type(find(model).trunk).__name__
        skip(f"{SMALLER_IMAGES}: left out, as the size of images of a {trunk} cannot be changed")
    return [*randomly_dropped(model, shares), *smaller]


def randomly_dropped(model: nn.Module, shares: Sequence[float]) -> list[Candidate]:
    """The model without as many tokens, chosen at random, in every block."""
    options = {"cue": "random", "inflection": 0.0}
    return [
        Candidate(AT_RANDOM, share, _folding(model, "drop", {**options, "flops": share}))
        for share in shares
    ]


class Smaller(Around):
    """A model that resizes its images to a smaller size first.

    size: what the model sees.
    window: what it takes, as a segmenter says it.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, model: nn.Module, size: tuple[int, int], window: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.size, self.window = size, window
        for name, *sides in zip(("rows", "columns"), size, window, strict=True):
            self.register_buffer(name, _shrinking(*sides), persistent=False)

    def forward(self, x: Tensor) -> Any:
        """The model's output for the smaller images."""
        if recording():  # runtimes resize otherwise; of products they all make the same
            return self.model(self.rows @ x @ self.columns.T)
        return self.model(_resized(x, self.size))


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bicubic", antialias=True)


def _shrinking(less: int, side: int) -> Tensor:
    """`[less, side]`: what resizing does along one side, as a matrix."""
    return _resized(torch.eye(side)[None, None], (less, side))[0, 0]


def smaller_images(model: nn.Module, shares: Sequence[float]) -> list[Candidate]:
    """The model on smaller images, at the size that comes nearest to every share."""
    trunk = find(model)
    if not hasattr(trunk.trunk, "set_input_size"):
        return []
    dense = cost(trunk)
    height, width = trunk.layout().grid or (0, 0)
    grids = [(rows, max(1, round(rows * width / height))) for rows in range(1, height)]
    costs = {grid: cost(find(_smaller(model, *grid))) / dense for grid in grids}
    if not costs:
        return []
    nearest = {share: min(costs, key=lambda grid: abs(costs[grid] - share)) for share in shares}
    return [
        Candidate(SMALLER_IMAGES, share, functools.partial(_smaller, model, *grid))
        for share, grid in nearest.items()
    ]


def _smaller(model: nn.Module, rows: int, columns: int) -> Smaller:
    small = clone(model)
    trunk = find(small)
    height, width = trunk.layout().grid or (1, 1)
    _, tall, wide = trunk.size
    size = (tall * rows // height, wide * columns // width)
    trunk.trunk.set_input_size(img_size=size)
    weight = next(small.parameters())
    return Smaller(small, size, (tall, wide)).to(weight).eval()


# Other models


def smaller_models(models: Mapping[str, Callable[[], nn.Module]]) -> list[Candidate]:
    """Other models, on the same images."""
    return [Candidate(f"{SMALLER_MODEL} {name}", 0.0, make) for name, make in models.items()]


# Models that come folded


def trained(models: Mapping[str, nn.Module]) -> list[Candidate]:
    """Models that come folded, with what their methods have learned, by where they come from."""
    return [_trained(name, model) for name, model in models.items()]


def _trained(name: str, model: nn.Module) -> Candidate:
    method = fold_of(model).method
    source = f"{name} {fingerprint(model.state_dict())[:12]}"
    share = getattr(method, "flops", None) or 0.0
    return Candidate(_title(method), share, lambda: model, source)


def _title(method: Base) -> str:
    """The name of a method, with what was chosen: its share, which a table shows beside it, and
    what it has learned are left out."""
    reduction = {name: getattr(method, name, None) for name in ("r", "flops")}
    same = {name: value for name, value in reduction.items() if value is not None}
    default = create_method(method.name, same).to_json() | {"r": None}  # a number is shown
    learned = {field.name for field in fields(method) if not field.repr}
    options = [
        f"{option}={value}"
        for option, value in method.to_json().items()
        if option not in learned and default.get(option) != value
    ]
    return " ".join([method.name, *options])


# What they are, and cost


def detail(model: nn.Module) -> str:
    """The method with its options, the size of the images, or the class of the model."""
    if records := folds(model):
        return str(records[0].method)
    if isinstance(model, Smaller):
        return f"{model.size[0]} x {model.size[1]} px"
    return type(model.model if isinstance(model, Renormalized) else model).__name__


def timed_trunk(model: nn.Module) -> nn.Module:
    """What of a candidate is counted and timed: its vision transformer."""
    return model if isinstance(model, Smaller) else find(model).trunk


def gigaflops(model: nn.Module, images: Inputs) -> float:
    """What one image costs in the vision transformer of a candidate, two operations per
    multiply-add."""
    return flops(timed_trunk(model), images) / batch_of(images) / 1e9
