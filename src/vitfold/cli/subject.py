"""What a training is about: a classifier or a segmenter, dense or folded."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitfold.answers import ONLY
from vitfold.cli import options, show
from vitfold.cli.search import SCORED, found_in, images_of
from vitfold.data import AnySource, SceneSource, data_config
from vitfold.errors import TrainError, one_line
from vitfold.fold import fold, folds
from vitfold.importance import ITERATIONS
from vitfold.methods.schedule import check_whole
from vitfold.models import (
    create_model,
    create_segmenter,
    described,
    is_named,
    saved_classes,
)
from vitfold.segment import Labels, Segmenter, classes_in
from vitfold.segment.segmenter import MOST_CLASSES

Options = dict[str, Any]


def classifier(
    name: str,
    pretrained: bool,
    num_classes: int | None,
    classes: int | None,
    changes: Options,
    arguments: Options,
) -> nn.Module:
    """The model, with a head for the classes of the data.

    changes: what else is to be another way than in a model that is known by name.
    """
    made = dict(arguments)
    if is_named(name):
        made |= options.given(num_classes=num_classes or classes) | changes
    elif changes or num_classes:
        raise TrainError(f"{name} has its own head and preprocessing: leave out what changes them")
    model = create_model(name, pretrained=pretrained, **made)
    if isinstance(model, Segmenter):
        raise TrainError(ONLY.format(type(model).__name__))
    return model


def counted(name: str, source: SceneSource) -> Labels:
    """What annotations mean. Where nobody says how many classes there are, they are as many as a
    saved segmenter has, or as those of training show."""
    labels, saved = source.labels, saved_classes(name)
    if saved is not None and labels.classes not in (saved, MOST_CLASSES):
        raise TrainError(f"{name} has {saved} classes: leave out --num-classes")
    if labels.classes != MOST_CLASSES:
        return labels
    if saved is not None:
        return replace(labels, classes=saved)
    scenes = source.open()
    with show.bar("counting classes", len(scenes)) as progress:
        return replace(labels, classes=classes_in(scenes, progress))


def segmenter(
    name: str,
    pretrained: bool,
    classes: int,
    decoder: str | None,
    changes: Options,
    arguments: Options,
) -> nn.Module:
    """A segmenter as it was saved, or a new one around an encoder."""
    made = arguments | changes
    if saved_classes(name) is None:
        kind = decoder or "mask"
        model = create_segmenter(name, classes, kind, pretrained=pretrained, **made)
        described(model)  # what cannot be saved is not trained
        return model
    if made or decoder:
        raise TrainError(f"{name} is a segmenter already: leave out what makes it another")
    return create_model(name)


def check_apart(source: AnySource, held_out: AnySource) -> None:
    """Refuse to evaluate on the images of training where nobody asked for it."""
    if source.shares(held_out):
        raise TrainError(
            f"{held_out.root or source.split}: the images to evaluate on are those of training: "
            "give --val-split, or --no-val"
        )


def check_classes(model: nn.Module, classes: int | None) -> None:
    """Refuse a head that has no room for the classes of the data."""
    head = _classes(model)
    if classes is not None and head is not None and head < classes:
        raise TrainError(
            f"the data has {classes} classes, the model {head}: give other data, a model by its "
            "timm name, or --num-classes"
        )


def _classes(model: nn.Module) -> int | None:
    config = getattr(model, "config", None)
    found: int | None = getattr(model, "num_classes", getattr(config, "num_labels", None))
    return found


def check_teacher(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse a teacher that answers another question."""
    both = isinstance(teacher, Segmenter), isinstance(student, Segmenter)
    if both[0] != both[1]:
        raise TrainError(
            f"--teacher is a {type(teacher).__name__}, what is trained a {type(student).__name__}: "
            "give one of its kind"
        )
    for trait, of in TRAITS[both[0]].items():
        ours, theirs = of(student), of(teacher)
        if ours != theirs:
            raise TrainError(f"--teacher has {trait}={theirs}, what is trained {trait}={ours}")


TRAITS: dict[bool, dict[str, Callable[[Any], Any]]] = {
    False: {"classes": _classes, "image size": lambda model: data_config(model)["input_size"]},
    True: {"classes": lambda model: model.classes, "window": lambda model: model.window},
}
"""What a teacher has in common with a classifier, and with a segmenter."""


def begin_from(model: nn.Module, weights: Mapping[str, Tensor], where: Path) -> None:
    """Give a model the weights of a checkpoint."""
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise TrainError(
            f"--initial-checkpoint {where} is of another model or method: {one_line(error)}"
        ) from error


def folded(model: nn.Module, choice: options.Choice) -> nn.Module:
    """The model, folded where that was asked for."""
    if (choice.method or "").lower() == "none":
        given = [choice.r, choice.flops, *choice.options]
        if any(value is not None for value in given):
            raise TrainError("--r, --flops and --method-kwargs go with a --method")
        return model
    if folds(model):
        raise TrainError(
            f"the model is folded by {folds(model)[0].method} already: leave out --method"
        )
    return fold(model, choice.build())


def searched(
    model: nn.Module,
    choice: options.Choice,
    source: AnySource,
    file: Path | None,
    resume: bool,
    seed: int,
    workers: int,
) -> nn.Module:
    """The model, folded by what a search in the images of training finds."""
    if choice.r is not None:
        raise TrainError(f"--r {choice.r}: {choice.method} takes --flops, or keep and prune")
    asked = options.parse(choice.options)
    if choice.flops is not None and "flops" in asked:
        raise TrainError(f"--flops {choice.flops} and flops={asked['flops']!r}: give one")
    asked |= options.given(flops=choice.flops)
    iterations = asked.get("iterations", ITERATIONS)
    check_whole("iterations", iterations, least=1)
    batches = images_of("", model, source, SCORED, iterations, seed, workers)
    return fold(model, found_in(model, batches, file, resume, asked))
