"""What a training is about: a classifier or a segmenter, dense or folded."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from vitfold.cli import options, show, values
from vitfold.cli.groups import Group, option
from vitfold.cli.images import shuffled_of
from vitfold.cli.offline import fetching
from vitfold.cli.recipe import numbers
from vitfold.cli.search import SCORED, SCORES, search_with
from vitfold.data import (
    AnySource,
    Source,
    classes_of,
    data_config,
    labelled,
    renormalized,
    untouched,
)
from vitfold.errors import TrainError
from vitfold.folding.calls import folds
from vitfold.folding.fold import fold, fold_to_learn
from vitfold.methods import METHODS
from vitfold.methods.base import named
from vitfold.methods.checks import check_whole
from vitfold.saving.models import create_model, dataset_of, is_named
from vitfold.segment import (
    DECODERS,
    Labels,
    Segmenter,
    classes_in,
    create_segmenter,
    saved_classes,
)
from vitfold.segment.segmenter import MOST_CLASSES
from vitfold.tools.answers import ONLY, classes_of_head
from vitfold.tools.prune_merge.search import ITERATIONS
from vitfold.train import TrainingData, checkpoint
from vitfold.train.evaluators import Evaluator, MeanIoU, Top1
from vitfold.train.examples import own_randomness, seed_all
from vitfold.train.learned import is_ragged

Options = dict[str, Any]


@dataclass(frozen=True)
class Data(options.Task):
    """The images to train and to evaluate on, and what their labels mean."""

    panel = "Data"

    dataset: Annotated[str, option("timm's dataset name: hfds/..., torch/cifar10, ...")] = ""
    data_dir: Annotated[
        Path | None,
        option("Folder or tar of class folders, or of images and annotations.", "--data-dir"),
    ] = None
    train_split: Annotated[str, option("What to train on.")] = "train"
    val_split: Annotated[str | None, option("What to evaluate on.", show_default="validation")] = (
        None
    )
    no_val: Annotated[bool, option("Do not evaluate.", "--no-val")] = False
    class_map: Annotated[str, option("File that maps class names to labels.")] = ""
    num_classes: Annotated[int | None, option("Default: what the dataset has.", min=1)] = None

    @property
    def held_out(self) -> str:
        """What to evaluate on."""
        return self.val_split or "validation"

    def check(self, model: str) -> None:
        """Refuse to begin without images: a model may name a dataset that it was made for."""
        if not (self.given or self.pixels or dataset_of(model)):
            raise options.no_data()

    @property
    def about(self) -> Options:
        """What tells the data of two trainings apart."""
        return {
            "data": [self.dataset, str(self.data_dir), self.train_split, self.class_map],
            "val_split": None if self.no_val else self.held_out,
        }

    @property
    def given(self) -> bool:
        """Whether anybody says where images are."""
        return self._images(self.train_split).source.given

    def labels_for(self, model: str) -> Labels | None:
        """What annotations mean, where every pixel has a class. Where nobody says how many there
        are, they are as many as a saved segmenter has, or as those of training show."""
        if not self.pixels:
            return None
        saved = saved_classes(model)
        if saved is not None and self.num_classes not in (None, saved, MOST_CLASSES):
            raise TrainError(f"{model} has {saved} classes: leave out --num-classes")
        known = saved or self.num_classes
        labels = self.labels(known or MOST_CLASSES)
        splits = [self.train_split] if self.no_val else [self.train_split, self.held_out]
        sources = [self._images(split).scenes(labels) for split in splits]
        if known:
            return labels
        scenes = [source.open() for source in sources]
        with show.bar("counting classes", sum(map(len, scenes))) as progress:
            return replace(labels, classes=max(classes_in(some, progress) for some in scenes))

    def sources(self, model: str, labels: Labels | None) -> tuple[AnySource, AnySource]:
        """Of what is trained on, and of what is held out; the model's own where none are given."""
        own = None if labels or self.given else dataset_of(model)
        chosen = replace(self, dataset=own) if own else self
        images = [chosen._images(split) for split in (self.train_split, self.held_out)]
        source, held_out = (i.scenes(labels) if labels else i.source for i in images)
        if not self.no_val and self.val_split is None and source.shares(held_out):
            raise TrainError(
                f"{held_out.root or source.split}: the images to evaluate on are those of "
                "training: give --val-split, or --no-val"
            )
        return source, held_out

    def _images(self, split: str) -> options.Images:
        return options.Images(self.dataset, self.data_dir, split, self.class_map)


@dataclass(frozen=True)
class Start(Group):
    """The model that a training begins with."""

    panel = "Model"

    pretrained: Annotated[bool, option("Start from the published weights.")] = False
    initial_checkpoint: Annotated[
        Path | None, option("Start from the weights of a checkpoint, checkpoints/step-...")
    ] = None
    model_kwargs: options.ModelKwargs = field(default_factory=list)
    img_size: options.ImageSize = None
    mean: Annotated[str | None, option("Of the channels: 0.5,0.5,0.5.")] = None
    std: Annotated[str | None, option("Of the channels: 0.5,0.5,0.5.")] = None
    crop_pct: Annotated[float | None, option("Share of an image that is looked at.")] = None
    decoder: Annotated[
        str | None, option(f"Of a new segmenter: {' or '.join(DECODERS)}.", show_default="mask")
    ] = None
    drop_path: Annotated[float, option("Share of blocks left out.", min=0, max=1)] = 0.0

    @property
    def arguments(self) -> Options:
        """What the model takes when it is made."""
        return values.arguments(self.model_kwargs, self.img_size)

    @property
    def overlay(self) -> Options:
        """What is another way in how it wants its images."""
        mean, std = numbers("mean", self.mean), numbers("std", self.std)
        for name, channels in ("mean", mean), ("std", std):
            if channels is not None and not (
                len(channels) in (1, 3) and all(map(math.isfinite, channels))
            ):
                raise TrainError(f"{name}={channels}: expected three numbers")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise TrainError(f"crop_pct={self.crop_pct}: expected a number up to 1, above 0")
        return values.given(mean=mean, std=std, crop_pct=self.crop_pct)

    @property
    def about(self) -> Options:
        """What tells two beginnings apart."""
        arguments = self.arguments | self.overlay | values.given(drop_path=self.drop_path or None)
        start = self.initial_checkpoint and str(self.initial_checkpoint)
        return {
            "arguments": arguments,
            "pretrained": self.pretrained,
            "initial_checkpoint": start,
        }

    @property
    def changes(self) -> Options:
        """What is to be another way than in a model that is known by name."""
        return values.given(
            drop_path_rate=self.drop_path or None, pretrained_cfg_overlay=self.overlay or None
        )

    def classifier(self, name: str, head: int | None, classes: int | None) -> nn.Module:
        """The model, with a head for as many classes as are asked for, or as the data has."""
        arguments = dict(self.arguments)
        if is_named(name):
            arguments |= values.given(num_classes=head or classes) | self.changes
        elif self.changes or head:
            raise TrainError(
                f"{name} has its own head and preprocessing: leave out what changes them"
            )
        with fetching(name, self.pretrained, "leave out --pretrained, or give a directory"):
            model = create_model(name, pretrained=self.pretrained, **arguments)
        if isinstance(model, Segmenter):
            raise TrainError(ONLY.format(type(model).__name__))
        _check_classes(model, classes)
        return model

    def segmenter(self, name: str, classes: int) -> nn.Module:
        """A segmenter as it was saved, or a new one around an encoder."""
        arguments = self.arguments | self.changes
        if saved_classes(name) is None:
            kind = self.decoder or "mask"
            with fetching(name, self.pretrained, "leave out --pretrained, or give a directory"):
                return create_segmenter(
                    name, classes, kind, pretrained=self.pretrained, **arguments
                )
        if arguments or self.decoder:
            raise TrainError(f"{name} is a segmenter already: leave out what makes it another")
        return create_model(name)

    def begin(self, model: nn.Module) -> None:
        """Give the model the weights of the checkpoint, if there is one."""
        if self.initial_checkpoint is None:
            return
        try:
            model.load_state_dict(dict(checkpoint.weights(self.initial_checkpoint)))
        except RuntimeError as error:
            why = " ".join(str(error).split())
            raise TrainError(
                f"--initial-checkpoint {self.initial_checkpoint} is of another model or method: "
                f"{why[:200]}"
            ) from error


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
    labels = data.labels_for(name)
    source, held_out = data.sources(name, labels)
    images = source.open()
    with own_randomness():
        seed_all(seed)
        if labels is None:
            classes = classes_of(images)
            if isinstance(held_out, Source) and not data.no_val:
                held_out = held_out.like(images)
            model = start.classifier(name, data.num_classes, classes)
            return Subject(model, source, held_out, images, data.num_classes or classes, Top1())
        model = start.segmenter(name, labels.classes)
    about = {"labels": asdict(labels), "decoder": start.decoder}
    evaluator = MeanIoU(labels.classes)
    return Subject(model, source, held_out, images, labels.classes, evaluator, about)


@dataclass(frozen=True)
class Choice(options.Choice):
    """A method, or none."""

    method: Annotated[str, option(f"none, {', '.join(METHODS)}.")] = "none"

    @property
    def searches(self) -> bool:
        """Whether it is found by a search in images first."""
        return self.method.lower() != "none" and named(self.method).found_by == "search"


def _check_classes(model: nn.Module, classes: int | None) -> None:
    """Refuse a head that has no room for the classes of the data."""
    head = classes_of_head(model)
    if classes is not None and head is not None and head < classes:
        raise TrainError(
            f"the data has {classes} classes, the model {head}: give other data, a model by its "
            "timm name, or --num-classes"
        )


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


def begin(
    subject: Subject, choice: Choice, start: Start, running: Any, seed: int, accelerator: Any
) -> nn.Module:
    """The model as training finds it: folded where that was asked for, after a search where the
    method takes one, with the weights that it starts from.

    running: where results go, whether they go on, and by how many workers.
    """
    if choice.searches and not folds(subject.model):
        scores = running.output / SCORES if accelerator.is_main_process else None
        subject.model.to(accelerator.device)
        resume, workers = running.resume, running.workers
        model = searched(subject.model, choice, subject.source, scores, resume, seed, workers)
    else:
        model = folded(subject.model, choice)
    start.begin(model)
    return model


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


def folded(model: nn.Module, choice: Choice) -> nn.Module:
    """The model, folded where that was asked for."""
    if choice.method.lower() == "none":
        if any(value is not None for value in [choice.r, choice.flops, *choice.method_kwargs]):
            raise TrainError("--r, --flops and --method-kwargs go with a --method")
        return model
    if folds(model):
        raise TrainError(
            f"the model is folded by {folds(model)[0].method} already: leave out --method"
        )
    return fold_to_learn(model, choice.build())


def searched(
    model: nn.Module,
    choice: Choice,
    source: AnySource,
    file: Path | None,
    resume: bool,
    seed: int,
    workers: int,
) -> nn.Module:
    """The model, folded by what a search in the images of training finds."""
    if choice.r is not None:
        raise TrainError(f"--r {choice.r}: {choice.method} takes --flops, or keep and prune")
    options = values.parse(choice.method_kwargs)
    if choice.flops is not None and "flops" in options:
        raise TrainError(f"--flops {choice.flops} and flops={options['flops']!r}: give one")
    options |= values.given(flops=choice.flops)
    iterations = options.get("iterations", ITERATIONS)
    check_whole("iterations", iterations, least=1)
    batches = shuffled_of(model, source, SCORED, iterations, seed, workers)
    return fold(model, search_with(model, batches, file, resume, options))
