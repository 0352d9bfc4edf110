"""`vitfold train`: train a model, dense or folded, under timm's option names."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from vitfold import plots
from vitfold.cli import options, show, subject
from vitfold.cli.search import SCORES
from vitfold.data import classes_of, labelled, untouched
from vitfold.errors import MissingExtra, TrainError
from vitfold.fold import folds
from vitfold.methods import METHODS, PruneMerge
from vitfold.models import create_model
from vitfold.segment import DECODERS, VOID, Labels
from vitfold.segment.segmenter import MOST_CLASSES
from vitfold.train import Distillation, Outcome, Recipe, checkpoint
from vitfold.train import train as train_
from vitfold.train.examples import own_randomness, seed_all
from vitfold.train.judge import Judge, MeanIoU, Top1
from vitfold.train.loop import create_accelerator
from vitfold.train.optimizing import learned_parameters
from vitfold.train.outline import BEST, LAST, OutOfReach, Settings, begun

CALIBRATION = 512
"""How many training images, evenly spaced, bring thresholds to the share that was asked for."""

DATA, LEARNING, IMAGES, RUNNING = "Data", "Learning", "Images", "Running"


def _option(panel: str, text: str = "", *names: str, **kwargs: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **kwargs)


def _by(default: str) -> dict[str, str]:
    """A default that the method may change, as help shows it."""
    return {"show_default": default}


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


def train(
    model: options.ModelName,
    task: Annotated[str, _option(DATA, "classify, or segment: a class for every pixel.")] = (
        options.TASKS[0]
    ),
    dataset: Annotated[
        str, _option(DATA, "timm's dataset name: hfds/..., torch/cifar10, ...")
    ] = "",
    data_dir: Annotated[
        Path | None,
        _option(
            DATA, "Folder or tar of class folders, or of images and annotations.", "--data-dir"
        ),
    ] = None,
    train_split: Annotated[str, _option(DATA, "What to train on.")] = "train",
    val_split: Annotated[
        str | None, _option(DATA, "What to evaluate on.", **_by("validation"))
    ] = None,
    no_val: Annotated[bool, _option(DATA, "Do not evaluate.", "--no-val")] = False,
    class_map: Annotated[str, _option(DATA, "File that maps class names to labels.")] = "",
    num_classes: Annotated[int | None, _option(DATA, "Default: what the dataset has.")] = None,
    ignore_label: Annotated[
        int, _option(DATA, "What annotations call a pixel of no class.", min=0)
    ] = VOID,
    reduce_zero_label: Annotated[
        bool, _option(DATA, "0 is no class, and classes begin at 1.", "--reduce-zero-label")
    ] = False,
    mean: Annotated[str | None, _option(DATA, "Of the channels: 0.5,0.5,0.5.")] = None,
    std: Annotated[str | None, _option(DATA, "Of the channels: 0.5,0.5,0.5.")] = None,
    crop_pct: Annotated[float | None, _option(DATA, "Share of an image that is looked at.")] = None,
    pretrained: Annotated[bool, _option(DATA, "Start from the published weights.")] = False,
    initial_checkpoint: Annotated[
        Path | None, _option(DATA, "Start from the weights of a checkpoint, checkpoints/step-...")
    ] = None,
    model_kwargs: options.ModelKwargs = [],  # noqa: B006 (typer copies defaults)
    img_size: options.ImageSize = None,
    decoder: Annotated[
        str | None,
        _option(LEARNING, f"Of a new segmenter: {' or '.join(DECODERS)}.", **_by("mask")),
    ] = None,
    drop_path: Annotated[float, _option(LEARNING, "Share of blocks left out.")] = 0.0,
    method: Annotated[str, _option(LEARNING, f"none, {', '.join(METHODS)}.")] = "none",
    r: options.Reduction = None,
    flops: options.Share = None,
    method_kwargs: options.MethodKwargs = [],  # noqa: B006
    epochs: Annotated[
        int | None,
        _option(LEARNING, "How often every image is seen.", "--epochs", min=1, **_by("10")),
    ] = None,
    batch_size: Annotated[
        int, _option(LEARNING, "Per process.", "--batch-size", "-b", min=1)
    ] = 128,
    grad_accum_steps: Annotated[int, _option(LEARNING, "Batches to a step.", min=1)] = 1,
    clip_grad: Annotated[float | None, _option(LEARNING, "The longest gradient.")] = None,
    opt: Annotated[
        str | None, _option(LEARNING, "timm's name of an optimizer.", **_by("adamw"))
    ] = None,
    lr: Annotated[
        float | None,
        _option(
            LEARNING, "Learning rate; of a method that learns: of the model too.", **_by("5e-4")
        ),
    ] = None,
    lr_merge: Annotated[
        float | None, _option(LEARNING, "Of thresholds for merging.", **_by("ltmp: 5e-3"))
    ] = None,
    lr_prune: Annotated[
        float | None, _option(LEARNING, "Of thresholds for pruning.", **_by("ltmp: 5e-6"))
    ] = None,
    weight_decay: Annotated[float | None, _option(LEARNING, "Weight decay.", **_by("0.05"))] = None,
    layer_decay: Annotated[float | None, _option(LEARNING, "Of the rate, block by block.")] = None,
    opt_kwargs: Annotated[
        list[str], _option(LEARNING, "For the optimizer.", metavar="KEY=VALUE")
    ] = [],  # noqa: B006
    sched: Annotated[str, _option(LEARNING, "timm's name of a schedule.")] = "cosine",
    warmup_epochs: Annotated[int, _option(LEARNING, "Of a rising rate.", min=0)] = 0,
    warmup_lr: Annotated[float, _option(LEARNING, "Where that starts.")] = 1e-6,
    min_lr: Annotated[float, _option(LEARNING, "Where the schedule ends.")] = 0.0,
    sched_kwargs: Annotated[
        list[str], _option(LEARNING, "For the schedule.", metavar="KEY=VALUE")
    ] = [],  # noqa: B006
    sam: Annotated[
        float | None,
        _option(LEARNING, "Sharpness-aware minimization that looks this far.", metavar="RHO"),
    ] = None,
    smoothing: Annotated[
        float | None, _option(LEARNING, "Of the labels.", **_by("0; ltmp: 0.1"))
    ] = None,
    distill: Annotated[
        str, _option(LEARNING, "none, soft or hard: learn from the dense model too.")
    ] = "none",
    distill_alpha: Annotated[float, _option(LEARNING, "How much that counts.")] = 1.0,
    distill_temperature: Annotated[
        float | None,
        _option(LEARNING, "What soft logits are divided by.", **_by("3; prune-merge: 20")),
    ] = None,
    teacher: Annotated[str | None, _option(LEARNING, "Another model to learn from.")] = None,
    freeze: Annotated[
        str | None,
        _option(
            LEARNING,
            "What stays as it is: none, model (all but what the method learns), or method.",
            **_by("none; ltmp without --lr: model"),
        ),
    ] = None,
    seed: Annotated[int, _option(LEARNING, "Decides all that is random.", min=0)] = 42,
    no_aug: Annotated[bool, _option(IMAGES, "No augmentation.", "--no-aug")] = False,
    scale: Annotated[str | None, _option(IMAGES, "Of random crops: 0.6,1.")] = None,
    ratio: Annotated[str | None, _option(IMAGES, "Of random crops: 0.75,1.33.")] = None,
    hflip: Annotated[float, _option(IMAGES, "How often images are mirrored.")] = 0.5,
    color_jitter: Annotated[float, _option(IMAGES, "How far colours move.")] = 0.4,
    aa: Annotated[
        str | None, _option(IMAGES, "timm's AutoAugment policy: rand-m9-mstd0.5, ...")
    ] = None,
    reprob: Annotated[float, _option(IMAGES, "How often a part is erased.")] = 0.0,
    aug_kwargs: Annotated[
        list[str], _option(IMAGES, "For timm's transforms.", metavar="KEY=VALUE")
    ] = [],  # noqa: B006
    mixup: Annotated[float, _option(IMAGES, "Alpha of mixup.", min=0)] = 0.0,
    cutmix: Annotated[float, _option(IMAGES, "Alpha of CutMix.", min=0)] = 0.0,
    mixup_prob: Annotated[
        float, _option(IMAGES, "How often images are mixed.", min=0, max=1)
    ] = 1.0,
    output: Annotated[Path, _option(RUNNING, "Everything goes here.", "--output", "-o")] = Path(
        "output/train"
    ),
    resume: Annotated[
        bool, _option(RUNNING, "Go on from the last checkpoint.", "--resume")
    ] = False,
    checkpoint_every: Annotated[int, _option(RUNNING, "Steps between checkpoints.", min=0)] = 0,
    checkpoint_hist: Annotated[int, _option(RUNNING, "How many checkpoints stay.", min=1)] = 3,
    log_interval: Annotated[
        int | None, _option(RUNNING, "Steps between lines in the log.", min=1, **_by("50; ltmp: 1"))
    ] = None,
    tensorboard: Annotated[
        bool, _option(RUNNING, "Log for TensorBoard too.", "--tensorboard")
    ] = False,
    torchcompile: Annotated[bool, _option(RUNNING, "Compile the model.", "--torchcompile")] = False,
    workers: Annotated[
        int, _option(RUNNING, "Processes that read images.", "--workers", "-j", min=0)
    ] = 0,
    device: Annotated[str, _option(RUNNING, "auto, cpu or cuda.")] = "auto",
    amp: options.Amp = False,
    amp_dtype: options.AmpDtype = "bfloat16",
) -> None:
    """Train a model, dense or folded.

    Everything goes to --output: `best` and `last` are models for any other command, log.csv has a
    row for every epoch. On several devices or machines: `accelerate launch -m vitfold train ...`.
    """
    if not (dataset or data_dir or options.segments(task)):
        raise options.no_data()
    looks = options.given(
        no_aug=no_aug or None,
        scale=_numbers("scale", scale),
        ratio=_numbers("ratio", ratio),
        hflip=hflip,
        color_jitter=color_jitter,
        auto_augment=aa,
        re_prob=reprob,
    )
    mixes = {"mixup_alpha": mixup, "cutmix_alpha": cutmix, "prob": mixup_prob}
    precision = options.precision(amp, amp_dtype)
    taught_by = _distillation(distill, distill_alpha, distill_temperature)
    if teacher is not None and taught_by is None:
        raise TrainError(f"--teacher {teacher}: it is heard by --distill soft, or hard")
    _check_freeze(freeze)
    begun(options.directory(output), resume)
    accelerator = create_accelerator(_device(device), precision)
    labels = None
    if options.segments(task):
        labels = Labels(num_classes or MOST_CLASSES, ignore_label, reduce_zero_label)
        scenes = options.scenes(dataset, data_dir, train_split, class_map, labels)
        labels = subject.counted(model, scenes)
    source = options.source(dataset, data_dir, train_split, class_map, labels)
    held_out = options.source(dataset, data_dir, val_split or "validation", class_map, labels)
    if not no_val and val_split is None:
        subject.check_apart(source, held_out)
    images = source.open()
    classes = labels.classes if labels else num_classes or classes_of(images)
    overlay = options.given(
        mean=_numbers("mean", mean), std=_numbers("std", std), crop_pct=crop_pct
    )
    arguments: dict[str, Any] = options.parse(model_kwargs) | options.given(img_size=img_size)
    changes = options.given(
        drop_path_rate=drop_path or None, pretrained_cfg_overlay=overlay or None
    )
    with own_randomness():
        seed_all(seed)
        if labels:
            number = labels.classes
            base = subject.segmenter(model, pretrained, number, decoder, changes, arguments)
        else:
            base = subject.classifier(model, pretrained, num_classes, classes, changes, arguments)
            subject.check_classes(base, classes_of(images))
    taught = None if teacher is None else create_model(teacher, pretrained=True)
    if taught is not None:
        subject.check_teacher(taught, base)
    choice = options.Choice(method, r, flops, method_kwargs)
    if (choice.method or "").lower() == PruneMerge.name and not folds(base):
        scored = output / SCORES if accelerator.is_main_process else None
        base.to(accelerator.device)
        ours = subject.searched(base, choice, source, scored, resume, seed, workers)
    else:
        ours = subject.folded(base, choice)
    if initial_checkpoint is not None:
        subject.begin_from(ours, checkpoint.weights(initial_checkpoint), initial_checkpoint)
    given = options.given(
        epochs=epochs,
        opt=opt,
        lr=lr,
        lr_merge=lr_merge,
        lr_prune=lr_prune,
        weight_decay=weight_decay,
        smoothing=smoothing,
        log_interval=log_interval,
        distill_temperature=distill_temperature,
    )
    usual = folds(ours)[0].method.training if folds(ours) else {}
    learns = [f"lr_{name}" for name, _ in learned_parameters(ours)]
    chosen = {**USUAL, **usual, **given}
    learning = options.given(
        lr=chosen["lr"], weight_decay=chosen["weight_decay"], layer_decay=layer_decay
    )
    rates = options.given(warmup_epochs=warmup_epochs, warmup_lr=warmup_lr, min_lr=min_lr)
    recipe = Recipe(
        epochs=chosen["epochs"],
        batch_size=batch_size,
        accumulate=grad_accum_steps,
        clip=clip_grad,
        sam=sam,
        seed=seed,
        smoothing=chosen["smoothing"],
        optimizer={"opt": chosen["opt"]} | learning | options.parse(opt_kwargs),
        schedule={"sched": sched} | rates | options.parse(sched_kwargs),
        augment=looks | options.parse(aug_kwargs),
        mix=mixes if mixup or cutmix else {},
        distill=taught_by and replace(taught_by, temperature=chosen["distill_temperature"]),
        rates=_rates(usual, learns) | _rates(given, given),
        frozen=_frozen(freeze, learns, chosen["lr"]),
        fixed=freeze == "method",
    )
    if labels and recipe.mix:
        raise TrainError("--mixup, --cutmix: only images of one class are mixed")
    images.transform = source.augment(base, recipe.augment)
    evaluated = None if no_val else untouched(base, held_out)
    settings = Settings(
        output,
        resume=resume,
        every=checkpoint_every,
        keep=checkpoint_hist,
        workers=workers,
        log_every=chosen["log_interval"],
        tensorboard=tensorboard,
        compiled=torchcompile,
        bar=show.bar,
        say=_say,
    )
    about = {
        "model": model,
        "arguments": arguments | overlay | options.given(drop_path=drop_path or None),
        "pretrained": pretrained,
        "method": [record.method.to_json() for record in folds(ours)],
        "data": [dataset, str(data_dir), train_split, class_map],
        **({"labels": asdict(labels), "decoder": decoder} if labels else {}),
        "teacher": teacher,
        "precision": precision,
        "initial_checkpoint": initial_checkpoint and str(initial_checkpoint),
    }
    judge = MeanIoU(labels.classes) if labels else Top1()
    try:
        outcome = train_(
            ours,
            recipe,
            images,
            evaluated,
            settings=settings,
            accelerator=accelerator,
            teacher=taught,
            classes=classes,
            calibration=labelled(base, source, CALIBRATION) if learns else None,
            judge=judge,
            about=about,
        )
    except OutOfReach as missed:
        if accelerator.is_main_process:
            _draw(output / LEARNED, missed.outcome.steps)
        raise
    if accelerator.is_main_process:
        _show(model, outcome, output, judge)


def _rates(values: Mapping[str, Any], names: Collection[str]) -> dict[str, float]:
    """Those learning rates among some values that are for what a method learns, by its names."""
    rates = {name: rate for name, rate in values.items() if name in names}
    return {n.removeprefix("lr_"): rate for n, rate in rates.items() if n.startswith("lr_")}


def _numbers(name: str, text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise TrainError(f"--{name} {text!r}: expected numbers with commas between") from None


def _distillation(kind: str, alpha: float, temperature: float | None) -> Distillation | None:
    if kind == "none":
        return None
    return Distillation(kind, alpha, **options.given(temperature=temperature))


def _device(name: str) -> str:
    if name not in ("auto", "cpu", "cuda"):
        raise TrainError(f"--device {name!r}: expected auto, cpu or cuda")
    return name if name == "auto" else options.device(name).type


FREEZES = ("none", "model", "method")


def _check_freeze(freeze: str | None) -> None:
    if freeze not in (None, *FREEZES):
        raise TrainError(f"--freeze {freeze!r}: expected {', '.join(FREEZES)}")


def _frozen(freeze: str | None, learns: list[str], lr: float | None) -> bool:
    """Whether only what the method learns is trained."""
    if freeze in ("model", "method") and not learns:
        raise TrainError(f"--freeze {freeze}: give a --method that learns, such as ltmp")
    return freeze == "model" or (freeze is None and bool(learns) and lr is None)


LEARNED = "learned.png"

NAMES = {"top1": "top-1", "miou": "mIoU"}
"""What figures of an epoch are called."""


def _say(figures: dict[str, float]) -> None:
    known = [f", {NAMES[figure]} {figures[figure]:.2%}" for figure in NAMES if figure in figures]
    show.console.print(
        f"epoch {figures['epoch']:.0f}: loss {figures['loss']:.4f}{''.join(known)}, "
        f"{figures['images_per_second']:.0f} images/s"
    )


def _show(name: str, outcome: Outcome, output: Path, judge: Judge) -> None:
    if outcome.stopped is not None:
        show.note(f"stopped after step {outcome.stopped}: go on with --resume")
        raise typer.Exit(130)
    best = [] if outcome.best is None else [[f"best {NAMES[judge.figure]}", f"{outcome.best:.2%}"]]
    figures = outcome.epochs[-1]
    rows = [["epochs", str(len(outcome.epochs))], ["loss", f"{figures['loss']:.4f}"], *best]
    if outcome.reached is not None:
        rows += [
            ["FLOPs asked", f"{outcome.asked:.1%}"],
            ["FLOPs reached", f"{outcome.reached:.1%}"],
        ]
    show.table(f"{name}, trained", ["", "figures"], rows)
    if any("share" in figures for figures in outcome.steps):
        _draw(output / LEARNED, outcome.steps)
    for kept in (BEST, LAST) if best else (LAST,):
        show.written(output / kept)


def _draw(path: Path, steps: list[dict[str, Any]]) -> None:
    """The picture of what was learned; a training is not lost for want of a library."""
    try:
        plots.learned(path, steps)
    except MissingExtra as error:
        show.note(f"no picture: {error}")
    else:
        show.written(path)
