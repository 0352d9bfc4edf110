"""What is trained, and on what: a classifier or a segmenter, and the images for it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from vitfold.cli import show, values
from vitfold.cli.offline import fetching
from vitfold.cli.subject import Data, Options, Start
from vitfold.cli.work.models import of_file, planned
from vitfold.data import (
    AnySource,
    Source,
    classes_of,
    labelled,
    renormalized,
    untouched,
)
from vitfold.errors import TrainError
from vitfold.saving.models import create_model, dataset_of, is_file, is_named
from vitfold.saving.sources.file import takes
from vitfold.segment import Labels, Segmenter, classes_in, create_segmenter, saved_classes
from vitfold.segment.segmenter import MOST_CLASSES
from vitfold.tools.answers import ONLY, classes_of_head
from vitfold.tools.wants import data_config
from vitfold.train import TrainingData
from vitfold.train.evaluators import Evaluator, MeanIoU, Top1
from vitfold.train.examples import own_randomness, seed_all
from vitfold.train.learned import is_ragged


@dataclass(frozen=True)
class Subject:
    """What is trained, and on what.

    images: those of training.
    about: what tells two of them apart, beside what was said of data and model.
    """

    model: nn.Module
    source: AnySource
    held_out: AnySource
    images: Any
    classes: int | None
    evaluator: Evaluator
    about: Options = field(default_factory=dict)


def choose(name: str, data: Data, start: Start, seed: int) -> Subject:
    """The model to begin with and the images for it, as far as they are asked for."""
    with own_randomness():
        seed_all(seed)
        own = _own_segmenter(start, name) if data.pixels and is_file(name) else None
    labels = _labels(data, name, own.classes if own is not None else None)
    source, held_out = _sources(data, name, labels)
    images = source.open()
    with own_randomness():
        seed_all(seed)
        if labels is None:
            classes = classes_of(images)
            if isinstance(held_out, Source) and not data.no_val:
                held_out = held_out.like(images)
            model = planned(_classifier(start, name, data.num_classes, classes), start.plan)
            return Subject(model, source, held_out, images, data.num_classes or classes, Top1())
        model = planned(own or _segmenter(start, name, labels.classes), start.plan)
    about = {"labels": asdict(labels), "decoder": start.decoder}
    evaluator = MeanIoU(labels.classes)
    return Subject(model, source, held_out, images, labels.classes, evaluator, about)


def _labels(data: Data, model: str, own: int | None) -> Labels | None:
    """What annotations mean, where every pixel has a class. Where nobody says how many there
    are, they are as many as a saved segmenter has, or as those of training show.

    own: how many a segmenter has that a file makes.
    """
    if not data.pixels:
        return None
    saved = own or saved_classes(model)
    if saved is not None and data.num_classes not in (None, saved, MOST_CLASSES):
        raise TrainError(f"{model} has {saved} classes: leave out --num-classes")
    known = saved or data.num_classes
    labels = data.labels(known or MOST_CLASSES)
    splits = [data.train_split] if data.no_val else [data.train_split, data.held_out]
    sources = [data.images(split).scenes(labels) for split in splits]
    if known:
        return labels
    scenes = [source.open() for source in sources]
    with show.bar("counting classes", sum(map(len, scenes))) as progress:
        return replace(labels, classes=max(classes_in(some, progress) for some in scenes))


def _sources(data: Data, model: str, labels: Labels | None) -> tuple[AnySource, AnySource]:
    """Of what is trained on, and of what is held out; the model's own where none are given."""
    own = None if labels or data.is_set else dataset_of(model)
    chosen = replace(data, dataset=own) if own else data
    images = [chosen.images(split) for split in (data.train_split, data.held_out)]
    source, held_out = (i.scenes(labels) if labels else i.source for i in images)
    if not data.no_val and data.val_split is None and source.shares(held_out):
        raise TrainError(
            f"{held_out.root or source.split}: the images to evaluate on are those of "
            "training: give --val-split, or --no-val"
        )
    return source, held_out


def _classifier(start: Start, name: str, head: int | None, classes: int | None) -> nn.Module:
    """The model, with a head for as many classes as are asked for, or as the data has."""
    arguments = dict(start.arguments)
    if is_named(name):
        arguments |= values.present(num_classes=head or classes) | start.changes
    elif is_file(name) and not start.changes:
        arguments |= _head_of_file(name, head or arguments.get("num_classes") or classes)
    elif start.changes or head:
        raise TrainError(f"{name} has its own head and preprocessing: leave out what changes them")
    with fetching(name, start.pretrained, "leave out --pretrained, or give a directory"):
        model = create_model(name, pretrained=start.pretrained, **arguments)
    if isinstance(model, Segmenter):
        raise TrainError(ONLY.format(type(model).__name__))
    _check_asked(name, model, head)
    _check_classes(model, classes)
    return model


def _head_of_file(name: str, classes: int | None) -> Options:
    """The number of classes for a function that takes it; others decide it themselves."""
    return values.present(num_classes=classes) if takes(name, "num_classes") else {}


def _check_asked(name: str, model: nn.Module, asked: int | None) -> None:
    """Refuse a model with another number of classes than is asked for."""
    head = classes_of_head(model)
    if asked is not None and head not in (None, asked):
        raise TrainError(
            f"{name} has {head} classes, not {asked}: leave out --num-classes, or let the function "
            "have a parameter num_classes"
        )


def _check_classes(model: nn.Module, classes: int | None) -> None:
    """Refuse a head that has no room for the classes of the data."""
    head = classes_of_head(model)
    if classes is not None and head is not None and head < classes:
        raise TrainError(
            f"the data has {classes} classes, the model {head}: give other data, a model by its "
            "timm name, or --num-classes"
        )


def _segmenter(start: Start, name: str, classes: int) -> nn.Module:
    """A segmenter as it was saved, or a new one around an encoder."""
    arguments = start.arguments | start.changes
    if saved_classes(name) is None:
        kind = start.decoder or "mask"
        with fetching(name, start.pretrained, "leave out --pretrained, or give a directory"):
            return create_segmenter(name, classes, kind, pretrained=start.pretrained, **arguments)
    if arguments or start.decoder:
        raise TrainError(f"{name} is a segmenter already: leave out what makes it another")
    return create_model(name)


def _own_segmenter(start: Start, name: str) -> Segmenter:
    """The segmenter that a file makes."""
    if start.changes or start.decoder:
        raise TrainError(f"{name} says itself what it makes: leave out what changes that")
    return of_file(name, create_model(name, pretrained=start.pretrained, **start.arguments), None)


def teacher(name: str | None, student: nn.Module) -> nn.Module | None:
    """Another model to learn from, where one is named; refused if it answers another question."""
    if name is None:
        return None
    teacher = create_model(name, pretrained=True)
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
    return renormalized(teacher, student)


TRAITS: dict[bool, dict[str, Callable[[Any], Any]]] = {
    False: {
        "classes": classes_of_head,
        "image size": lambda model: data_config(model)["input_size"],
    },
    True: {"classes": lambda model: model.classes, "window": lambda model: model.window},
}
"""What a teacher has in common with a classifier, and with a segmenter."""


def material(
    subject: Subject, model: nn.Module, data: Data, teacher: nn.Module | None, about: Options
) -> TrainingData:
    """What a model learns from and is measured on."""
    held_out = None if data.no_val else untouched(subject.model, subject.held_out)
    calibration = None
    if is_ragged(model):
        calibration = labelled(subject.model, subject.source, CALIBRATION, skip=True)
    return TrainingData(
        subject.images,
        held_out,
        calibration,
        subject.classes,
        subject.evaluator,
        teacher,
        about,
    )


CALIBRATION = 512
"""How many training images, evenly spaced, fit thresholds to the share that was asked for."""
