"""How a model is trained, as the command line says it; defaults are those of `Recipe`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from vitfold.cli import values
from vitfold.cli.groups import Group, option
from vitfold.cli.names import TRAINING
from vitfold.errors import TrainError
from vitfold.train.recipe import FREEZES, LOG_EVERY, MOST, Distillation, Recipe

if TYPE_CHECKING:
    from torch import nn

USUAL = Recipe()

SCHEDULE, AUGMENT = USUAL.schedule, USUAL.augment


def by(name: str, key: str = "") -> dict[str, str]:
    """For an option's help: what is done where the user says nothing, and by which methods
    something else.

    name: a field of what methods say of trainings; `key`: of such a field that is a mapping.
    """
    field_ = key or name
    own = [f"{method}: {_shown(of[field_])}" for method, of in TRAINING.items() if field_ in of]
    elsewhere: dict[str, Any] = {"temperature": Distillation.temperature, "log_every": LOG_EVERY}
    usual = elsewhere[name] if name in elsewhere else getattr(USUAL, name)
    value = usual.get(key) if key else usual
    return {"show_default": "; ".join([*([] if value is None else [_shown(value)]), *own])}


def _shown(value: object) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def numbers(name: str, text: str | None) -> list[float] | None:
    """The numbers in an option such as `--mean 0.5,0.5,0.5`."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise TrainError(f"--{name} {text!r}: expected numbers with commas between") from None


def _range(name: str, text: str | None) -> list[float] | None:
    """The two numbers in an option such as `--scale 0.6,1`."""
    ends = numbers(name, text)
    if ends is not None and not (len(ends) == 2 and 0 < ends[0] <= ends[1] < MOST):
        raise TrainError(f"{name}={ends}: expected two numbers, the smaller first")
    return ends


@dataclass(frozen=True)
class Looks(Group):
    """How images look in training."""

    panel = "Augmentation"

    no_aug: Annotated[bool, option("No augmentation.", "--no-aug")] = False
    scale: Annotated[str | None, option("Share of an image in a random crop: 0.6,1.")] = None
    ratio: Annotated[str | None, option("Width over height of a random crop: 0.75,1.33.")] = None
    hflip: Annotated[float, option("How often images are mirrored.", min=0, max=1)] = AUGMENT[
        "hflip"
    ]
    color_jitter: Annotated[float, option("How far colours move.", min=0)] = AUGMENT["color_jitter"]
    aa: Annotated[str | None, option("timm's AutoAugment policy: rand-m9-mstd0.5, ...")] = None
    reprob: Annotated[float, option("How often a part is erased.", min=0, max=1)] = AUGMENT[
        "re_prob"
    ]
    aug_kwargs: Annotated[list[str], option("For timm's transforms.", metavar="KEY=VALUE")] = field(
        default_factory=list
    )
    mixup: Annotated[float, option("Alpha of mixup.", min=0)] = 0.0
    cutmix: Annotated[float, option("Alpha of CutMix.", min=0)] = 0.0
    mixup_prob: Annotated[float, option("How often images are mixed.", min=0, max=1)] = 1.0

    @property
    def augment(self) -> dict[str, Any]:
        """How training images are augmented, as options of timm's `create_transform`."""
        return values.present(
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
        """How images are mixed, as options of timm's `Mixup`; nothing where none are."""
        if not (self.mixup or self.cutmix):
            return {}
        return {"mixup_alpha": self.mixup, "cutmix_alpha": self.cutmix, "prob": self.mixup_prob}


@dataclass(frozen=True)
class Teaching(Group):
    """From which other model one learns, and how."""

    panel = "Distillation"

    distill: Annotated[str, option("none, soft or hard: learn from the dense model too.")] = "none"
    distill_alpha: Annotated[float, option("How much that counts.")] = Distillation.alpha
    distill_temperature: Annotated[
        float | None, option("What soft logits are divided by.", **by("temperature"))
    ] = None
    teacher: Annotated[str | None, option("Another model to learn from.")] = None

    @property
    def distillation(self) -> dict[str, Any] | None:
        """For a recipe; None where a model learns from labels alone."""
        if self.distill != "none":
            return values.present(
                kind=self.distill, alpha=self.distill_alpha, temperature=self.distill_temperature
            )
        if self.teacher is not None:
            raise TrainError(f"--teacher {self.teacher}: it is heard by --distill soft, or hard")
        return None


@dataclass(frozen=True)
class Learning(Group):
    """How and how long a model learns."""

    panel = "Learning"

    epochs: Annotated[
        int | None, option("How often every image is seen.", "--epochs", min=1, **by("epochs"))
    ] = None
    batch_size: Annotated[int, option("Per process.", "--batch-size", "-b", min=1)] = (
        Recipe.batch_size
    )
    grad_accum_steps: Annotated[int, option("Batches to a step.", min=1)] = Recipe.accumulate
    clip_grad: Annotated[float | None, option("The longest gradient.")] = Recipe.clip
    opt: Annotated[str | None, option("timm's name of an optimizer.", **by("optimizer", "opt"))] = (
        None
    )
    lr: Annotated[
        float | None,
        option(
            "Learning rate; of a method that learns: of the model too.", **by("optimizer", "lr")
        ),
    ] = None
    lr_merge: Annotated[
        float | None,
        option("Rate of thresholds or matrices that merge.", **by("rates", "merge")),
    ] = None
    lr_prune: Annotated[
        float | None, option("Rate of thresholds for pruning.", **by("rates", "prune"))
    ] = None
    lr_restore: Annotated[float | None, option("Rate of matrices that restore.")] = None
    weight_decay: Annotated[
        float | None, option("Weight decay.", **by("optimizer", "weight_decay"))
    ] = None
    layer_decay: Annotated[float | None, option("Decay of the rate, block by block.")] = None
    opt_kwargs: Annotated[list[str], option("For the optimizer.", metavar="KEY=VALUE")] = field(
        default_factory=list
    )
    sched: Annotated[str, option("timm's name of a schedule.")] = SCHEDULE["sched"]
    warmup_epochs: Annotated[int, option("Epochs in which the learning rate rises.", min=0)] = (
        SCHEDULE["warmup_epochs"]
    )
    warmup_lr: Annotated[float, option("The rate at its start.")] = SCHEDULE["warmup_lr"]
    min_lr: Annotated[float, option("The rate at its end.")] = SCHEDULE["min_lr"]
    sched_kwargs: Annotated[list[str], option("For the schedule.", metavar="KEY=VALUE")] = field(
        default_factory=list
    )
    sam: Annotated[
        float | None,
        option("Sharpness-aware minimization that looks this far.", metavar="RHO"),
    ] = Recipe.sam
    smoothing: Annotated[float | None, option("Label smoothing.", **by("smoothing"))] = None
    freeze: Annotated[
        str | None,
        option(
            "What stays as it is: none, model (all but what the method learns), or method.",
            show_default="none; without a rate for the model: model",
        ),
    ] = None
    seed: Annotated[int, option("Decides all that is random.", min=0)] = Recipe.seed

    def check(self, teaching: Teaching, looks: Looks) -> None:
        """Refuse what makes no sense whatever the model."""
        from vitfold.methods.recipe import MethodRecipe

        if self.freeze not in (None, *FREEZES):
            raise TrainError(f"--freeze {self.freeze!r}: expected {', '.join(FREEZES)}")
        Recipe.for_method(MethodRecipe(), **self._overrides(teaching, looks))

    def recipe(self, model: nn.Module, teaching: Teaching, looks: Looks) -> Recipe:
        """How this model is trained: as the user says, as its method is usually, or as all are."""
        from vitfold.train.learned import kinds, learned_parameters

        learned = kinds(name for name, _ in learned_parameters(model))
        if self.freeze in ("model", "method") and not learned:
            raise TrainError(f"--freeze {self.freeze}: give a --method that learns, such as ltmp")
        if self.freeze == "method" and self._rates:
            rate = next(iter(self._rates))
            raise TrainError(f"--freeze method: it stays as it is; leave out --lr-{rate}")
        return Recipe.for_model(model, **self._overrides(teaching, looks))

    @property
    def _rates(self) -> dict[str, float]:
        """Learning rates of what a method learns, by its names."""
        return values.present(merge=self.lr_merge, prune=self.lr_prune, restore=self.lr_restore)

    def _overrides(self, teaching: Teaching, looks: Looks) -> dict[str, Any]:
        """What the user says, as fields of a recipe."""
        optimizer = values.present(
            opt=self.opt,
            lr=self.lr,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
        )
        schedule = {
            "sched": self.sched,
            "warmup_epochs": self.warmup_epochs,
            "warmup_lr": self.warmup_lr,
            "min_lr": self.min_lr,
        }
        return values.present(
            epochs=self.epochs,
            batch_size=self.batch_size,
            accumulate=self.grad_accum_steps,
            clip=self.clip_grad,
            sam=self.sam,
            seed=self.seed,
            smoothing=self.smoothing,
            optimizer=optimizer | values.parse(self.opt_kwargs),
            schedule=schedule | values.parse(self.sched_kwargs),
            augment=looks.augment,
            mix=looks.mix,
            distill=teaching.distillation,
            rates=self._rates,
            freeze=self.freeze,
        )
