"""How a model is trained, as the command line says it."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from torch import nn

from vitfold.cli import values
from vitfold.cli.groups import Group, option
from vitfold.errors import TrainError
from vitfold.folding.calls import folds
from vitfold.methods import METHODS
from vitfold.train import Distillation, Recipe
from vitfold.train.optimizing import learned_parameters
from vitfold.train.recipe import FREEZES, MOST

USUAL = {
    "epochs": 10,
    "opt": "adamw",
    "lr": 5e-4,
    "weight_decay": 0.05,
    "smoothing": 0.0,
    "log_interval": 50,
    "distill_temperature": 3.0,
}
"""What is done where neither the user nor the method says anything."""


def by(name: str) -> dict[str, str]:
    """What is done where the user says nothing, and by which methods something else."""
    own = [f"{m.name}: {_shown(m.training[name])}" for m in METHODS.values() if name in m.training]
    first = [_shown(USUAL[name])] if name in USUAL else []
    return {"show_default": "; ".join([*first, *own])}


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def usual(model: nn.Module) -> dict[str, Any]:
    """What is done where the user says nothing."""
    return USUAL | {
        name: value for record in folds(model) for name, value in record.method.training.items()
    }


def numbers(name: str, text: str | None) -> list[float] | None:
    """What an option says with commas between."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise TrainError(f"--{name} {text!r}: expected numbers with commas between") from None


def _range(name: str, text: str | None) -> list[float] | None:
    """The same, of two numbers."""
    found = numbers(name, text)
    if found is not None and not (len(found) == 2 and 0 < found[0] <= found[1] < MOST):
        raise TrainError(f"{name}={found}: expected two numbers, the smaller first")
    return found


@dataclass(frozen=True)
class Looks(Group):
    """How images look in training."""

    panel = "Augmentation"

    no_aug: Annotated[bool, option("No augmentation.", "--no-aug")] = False
    scale: Annotated[str | None, option("Of random crops: 0.6,1.")] = None
    ratio: Annotated[str | None, option("Of random crops: 0.75,1.33.")] = None
    hflip: Annotated[float, option("How often images are mirrored.", min=0, max=1)] = 0.5
    color_jitter: Annotated[float, option("How far colours move.", min=0)] = 0.4
    aa: Annotated[str | None, option("timm's AutoAugment policy: rand-m9-mstd0.5, ...")] = None
    reprob: Annotated[float, option("How often a part is erased.", min=0, max=1)] = 0.0
    aug_kwargs: Annotated[list[str], option("For timm's transforms.", metavar="KEY=VALUE")] = field(
        default_factory=list
    )
    mixup: Annotated[float, option("Alpha of mixup.", min=0)] = 0.0
    cutmix: Annotated[float, option("Alpha of CutMix.", min=0)] = 0.0
    mixup_prob: Annotated[float, option("How often images are mixed.", min=0, max=1)] = 1.0

    @property
    def augment(self) -> dict[str, Any]:
        """For timm's `create_transform`."""
        return values.given(
            no_aug=self.no_aug or None,
            scale=_range("scale", self.scale),
            ratio=_range("ratio", self.ratio),
            hflip=self.hflip,
            color_jitter=self.color_jitter,
            auto_augment=self.aa,
            re_prob=self.reprob,
        ) | values.parse(self.aug_kwargs)

    @property
    def mix(self) -> dict[str, Any]:
        """For timm's `Mixup`; nothing where no images are mixed."""
        if not (self.mixup or self.cutmix):
            return {}
        return {"mixup_alpha": self.mixup, "cutmix_alpha": self.cutmix, "prob": self.mixup_prob}


@dataclass(frozen=True)
class Learning(Group):
    """How, how long and from whom a model learns."""

    panel = "Learning"

    epochs: Annotated[
        int | None, option("How often every image is seen.", "--epochs", min=1, **by("epochs"))
    ] = None
    batch_size: Annotated[int, option("Per process.", "--batch-size", "-b", min=1)] = 128
    grad_accum_steps: Annotated[int, option("Batches to a step.", min=1)] = 1
    clip_grad: Annotated[float | None, option("The longest gradient.")] = None
    opt: Annotated[str | None, option("timm's name of an optimizer.", **by("opt"))] = None
    lr: Annotated[
        float | None,
        option("Learning rate; of a method that learns: of the model too.", **by("lr")),
    ] = None
    lr_merge: Annotated[
        float | None, option("Of thresholds or matrices that merge.", **by("lr_merge"))
    ] = None
    lr_prune: Annotated[float | None, option("Of thresholds for pruning.", **by("lr_prune"))] = None
    lr_restore: Annotated[float | None, option("Of matrices that restore.")] = None
    weight_decay: Annotated[float | None, option("Weight decay.", **by("weight_decay"))] = None
    layer_decay: Annotated[float | None, option("Of the rate, block by block.")] = None
    opt_kwargs: Annotated[list[str], option("For the optimizer.", metavar="KEY=VALUE")] = field(
        default_factory=list
    )
    sched: Annotated[str, option("timm's name of a schedule.")] = "cosine"
    warmup_epochs: Annotated[int, option("Of a rising rate.", min=0)] = 0
    warmup_lr: Annotated[float, option("Where that starts.")] = 1e-6
    min_lr: Annotated[float, option("Where the schedule ends.")] = 0.0
    sched_kwargs: Annotated[list[str], option("For the schedule.", metavar="KEY=VALUE")] = field(
        default_factory=list
    )
    sam: Annotated[
        float | None,
        option("Sharpness-aware minimization that looks this far.", metavar="RHO"),
    ] = None
    smoothing: Annotated[float | None, option("Of the labels.", **by("smoothing"))] = None
    distill: Annotated[str, option("none, soft or hard: learn from the dense model too.")] = "none"
    distill_alpha: Annotated[float, option("How much that counts.")] = 1.0
    distill_temperature: Annotated[
        float | None, option("What soft logits are divided by.", **by("distill_temperature"))
    ] = None
    teacher: Annotated[str | None, option("Another model to learn from.")] = None
    freeze: Annotated[
        str | None,
        option(
            "What stays as it is: none, model (all but what the method learns), or method.",
            show_default="none; without a rate for the model: model",
        ),
    ] = None
    seed: Annotated[int, option("Decides all that is random.", min=0)] = 42

    def check(self, looks: Looks) -> None:
        """Refuse what makes no sense whatever the model."""
        if self.teacher is not None and self.distill == "none":
            raise TrainError(f"--teacher {self.teacher}: it is heard by --distill soft, or hard")
        if self.freeze not in (None, *FREEZES):
            raise TrainError(f"--freeze {self.freeze!r}: expected {', '.join(FREEZES)}")
        self._recipe(USUAL, ["anything"], looks)

    def recipe(self, model: nn.Module, looks: Looks) -> Recipe:
        """How this model is trained: as the user says, as its method is usually, or as all are."""
        learns = [f"lr_{name}" for name, _ in learned_parameters(model)]
        return self._recipe(usual(model), learns, looks)

    def _recipe(self, usual: Mapping[str, Any], learns: Collection[str], looks: Looks) -> Recipe:
        """The same, from what is usual and from the rates that the method has."""
        said = values.given(**asdict(self))
        chosen = {**usual, **said}
        rates = values.given(
            lr=chosen["lr"], weight_decay=chosen["weight_decay"], layer_decay=self.layer_decay
        )
        warmup = {name: chosen[name] for name in ("warmup_epochs", "warmup_lr", "min_lr")}
        return Recipe(
            epochs=chosen["epochs"],
            batch_size=self.batch_size,
            accumulate=self.grad_accum_steps,
            clip=self.clip_grad,
            sam=self.sam,
            seed=self.seed,
            smoothing=chosen["smoothing"],
            optimizer={"opt": chosen["opt"]} | rates | values.parse(self.opt_kwargs),
            schedule={"sched": self.sched} | warmup | values.parse(self.sched_kwargs),
            augment=looks.augment,
            mix=looks.mix,
            distill=self._distillation(chosen["distill_temperature"]),
            rates=({} if self.freeze == "method" else _rates(usual, learns)) | _rates(said, said),
            freeze=self._frozen(learns, chosen["lr"]),
        )

    def _distillation(self, temperature: float) -> Distillation | None:
        if self.distill == "none":
            return None
        return Distillation(self.distill, self.distill_alpha, temperature)

    def _frozen(self, learns: Collection[str], lr: float | None) -> str:
        """What stays as it is: the model, where nobody says so and it has no rate."""
        if self.freeze in ("model", "method") and not learns:
            raise TrainError(f"--freeze {self.freeze}: give a --method that learns, such as ltmp")
        said = values.given(**asdict(self))
        if self.freeze == "method" and (rates := _rates(said, said)):
            rate = next(iter(rates))
            raise TrainError(f"--freeze method: it stays as it is; leave out --lr-{rate}")
        return self.freeze or ("model" if learns and lr is None else "none")


def _rates(values: Mapping[str, Any], names: Collection[str]) -> dict[str, float]:
    """Those learning rates among some values that are for what a method learns, by its names."""
    rates = {name: rate for name, rate in values.items() if name in names}
    return {n.removeprefix("lr_"): rate for n, rate in rates.items() if n.startswith("lr_")}
