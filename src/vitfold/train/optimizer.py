"""Optimizers and schedules by timm's names, and sharpness-aware steps around them."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import timm.optim
import timm.scheduler
from torch import nn

from vitfold.errors import TrainError, missing, one_line
from vitfold.train.learned import kinds, learned_parameters
from vitfold.train.recipe import Options


def optimizer(
    model: nn.Module, options: Options, rates: Options | None = None, frozen: bool = False
) -> Any:
    """timm's optimizer over the parameters that are trained.

    rates: for what the method of the model learns, by name, or by the first part of it; none of it
        decays.
    frozen: only that is trained.
    """
    learned = {name: v for name, v in learned_parameters(model) if v.requires_grad}
    _refuse_rates(rates or {}, learned)
    if frozen and not learned:
        raise TrainError("nothing is trained: give --lr, or a method that learns")
    groups: list[dict[str, Any]] = [
        {"params": [values], "lr": rate, "weight_decay": 0.0}
        for name, values in learned.items()
        if (rate := _rate(rates or {}, name, options.get("lr"))) is not None
    ]
    if options.get("layer_decay") is not None and not hasattr(model, "group_matcher"):
        raise TrainError(
            f"layer_decay={options['layer_decay']}: a {type(model).__name__} does not say which "
            "layers it has: leave it out"
        )
    try:
        if frozen:
            lr = max(group["lr"] for group in groups)
            return timm.optim.create_optimizer_v2(groups, **{**options, "lr": lr})
        with _still(learned.values()):
            whole = timm.optim.create_optimizer_v2(model, **options)
        for group in groups:
            whole.add_param_group(group)
        return whole
    except Exception as error:  # constructors of optimizers raise what they like
        raise TrainError(f"optimizer {_shown(options)}: {one_line(error)}") from error


def _rate(rates: Options, name: str, usual: float | None) -> float | None:
    return rates.get(name, rates.get(name.partition(".")[0], usual))


def _refuse_rates(rates: Options, learned: Collection[str]) -> None:
    parts = kinds(iter(learned))
    for name in rates:
        if name not in learned and name not in parts:
            known = ", ".join(f"lr_{part}" for part in parts) or "none"
            raise TrainError(f"lr_{name}: the method learns no such thing; it takes {known}")


@contextlib.contextmanager
def _still(parameters: Collection[nn.Parameter]) -> Iterator[None]:
    """Within it, these parameters ask for no gradient."""
    for values in parameters:
        values.requires_grad_(False)
    try:
        yield
    finally:
        for values in parameters:
            values.requires_grad_(True)


def freezing(model: nn.Module, what: str) -> contextlib.AbstractContextManager[None]:
    """Nothing stays as it is, or the model but for what its method learns, or just that."""
    learned = {id(values) for _, values in learned_parameters(model)}
    trained = [p for p in model.parameters() if p.requires_grad]
    if what == "none":
        return contextlib.nullcontext()
    return _still([values for values in trained if (id(values) in learned) == (what == "method")])


def scheduler(optimizer: Any, options: Options, epochs: int, steps: int) -> Any:
    """timm's schedule, which moves on with every step of the `steps` in an epoch."""
    try:
        schedule, length = timm.scheduler.create_scheduler_v2(
            optimizer, num_epochs=epochs, step_on_epochs=False, updates_per_epoch=steps, **options
        )
    except Exception as error:
        raise TrainError(f"schedule {_shown(options)}: {one_line(error)}") from error
    if schedule is None:
        return _Still()
    if length > epochs:
        raise TrainError(f"schedule {_shown(options)} takes {length} epochs: expected {epochs}")
    return schedule


class _Still:
    """A schedule in which the learning rate stays."""

    def step_update(self, step: int) -> None:
        """The rate stays."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """There is no state."""


Backward = Callable[[], Any]


class PlainStep:
    """One update from one gradient."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def __call__(self, backward: Backward, clip: Callable[[], None]) -> Any:
        """`backward` makes the gradient, and what it returns is returned."""
        loss = backward()
        clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


class SharpnessAwareStep:
    """One update from the gradient at the sharpest point nearby, for all batches of a step alike.

    Gradients that a scaler has made bigger point the same way; where they overflow, the second
    gradient does so too, and the scaler leaves out the step.
    """

    def __init__(self, optimizer: Any, rho: float) -> None:
        try:
            from pytorch_optimizer import SAM
        except ImportError:
            raise missing("pytorch-optimizer", "train") from None
        self.optimizer = optimizer
        self.sam = SAM(optimizer.param_groups, lambda *_, **__: optimizer, rho=rho)

    def __call__(self, backward: Backward, clip: Callable[[], None]) -> Any:
        """`backward` is run twice on the same images."""
        loss = backward()
        self.sam.first_step()
        self.optimizer.zero_grad()
        backward()
        clip()
        self.sam.second_step()
        self.optimizer.zero_grad()
        return loss


def _shown(options: Options) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())
