"""`export`: a model written for a runtime, verified there, and timed beside the dense one."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor, nn

from vitfold.errors import DataError
from vitfold.exporting import preprocessing
from vitfold.exporting.graph import Graph, Named, graph_of
from vitfold.exporting.inside import Inside, Pictures
from vitfold.exporting.pictures import Preparation, preparation_of
from vitfold.exporting.report import Corner, Report
from vitfold.exporting.serve import Served, quantized
from vitfold.exporting.targets import Runner, Target, refusing
from vitfold.exporting.targets import target as target_
from vitfold.exporting.verify import Agreement, eager, verify
from vitfold.files import whole_directory, writing
from vitfold.folding.calls import fold_of, folds
from vitfold.folding.fold import clone
from vitfold.saving.plans import Directory
from vitfold.tokens.modes import evaluating
from vitfold.tools.fidelity import Comparison
from vitfold.tools.intervals import Estimate, share_of
from vitfold.tools.looks import Look, look
from vitfold.tools.measure import Progress, Throughput, interleave, now
from vitfold.tools.results import machine, versions
from vitfold.tools.validate import check_labelled

FILE = "report.json"

DENSE, FOLDED = "dense", "folded"

PICTURES = " from pictures"

SIZES = (1, 8)
"""Batch sizes that are timed where any is taken."""

BATCH = 64
"""How many images are compared at a time."""


def export(
    model: nn.Module,
    directory: Directory,
    *,
    target: str = "onnx",
    images: Tensor | None = None,
    labels: Tensor | None = None,
    batch_size: int | None = None,
    int8: bool = False,
    preprocess: bool = False,
    repeats: int = 10,
    progress: Progress = lambda: None,
) -> Report:
    """Write a model, folded or dense, for a runtime, and say how it does there.

    What is written is compared with eager torch first, also on images in which tokens are alike;
    when it differs, nothing is kept. Beside it lie `preprocessor_config.json` and `report.json`.

    target: torch, aoti, onnx or openvino.
    images: `[N, C, H, W]` photographs, prepared for the model; by default random ones. With them
        the report has fidelity too.
    labels: `[N]` the classes of the images, where the report is to have accuracy, too.
    batch_size: the number of images that it takes; None: any.
    int8: in eight bits, with ranges from the images.
    preprocess: the program resizes, crops and normalizes by itself: `pixel_values` are then
        pictures `[B, H, W, 3]` in 8 bits, RGB, of any size. With openvino.
    progress: called after every step of `steps`.
    """
    kind = target_(target)
    kind.check(int8, preprocess=preprocess)
    preparation = preparation_of(model) if preprocess else None
    _check(images, labels, int8, batch_size)
    place = Path(directory)
    check_place(place, kind)
    with evaluating(model), tempfile.TemporaryDirectory() as work:
        job = Job(model, kind, Path(work), images, labels, batch_size, progress)
        agreement = job.write_all(int8)
        report = job.report(agreement, repeats)
        if preparation is not None:
            report = replace(report, preprocess=job.prepend(preparation))
        _keep(job.last, place, report, model)
    return report


def steps(model: nn.Module, int8: bool, batch_size: int | None, repeats: int) -> int:
    """How often `export` tells its progress."""
    forms = 1 + bool(folds(model))
    sizes = 1 if batch_size else len(SIZES)
    corners = forms * (1 + int8)
    return forms + int8 * forms + 1 + corners * sizes * (repeats + WARMUP)


WARMUP = 2


@dataclass
class Answers:
    """What one form says of images.

    hits: of labelled ones, whether it is right.
    """

    comparison: Comparison = field(default_factory=Comparison)
    hits: list[Tensor] = field(default_factory=list)

    def add(self, ours: Look, dense: Look, labels: Tensor | None) -> None:
        """Of a few more images."""
        self.comparison.add(ours, dense)
        if labels is None:
            return
        if ours.logits is None or ours.logits.dim() != 2:
            raise DataError("labels: this model gives images no class: leave them out")
        check_labelled(labels, ours.logits)
        self.hits.append(ours.logits.argmax(dim=1) == labels)

    @property
    def top1(self) -> Estimate | None:
        """The share that is right; None without labels."""
        return share_of(torch.cat(self.hits).double()) if self.hits else None


@dataclass
class Job:
    """One export under way: the forms of a model in directories of their own.

    work: where they lie until they are kept.
    """

    model: nn.Module
    kind: Target
    work: Path
    images: Tensor | None
    labels: Tensor | None
    batch_size: int | None
    progress: Progress

    def __post_init__(self) -> None:
        self.graphs: dict[str, Graph] = {}
        self.runs: dict[str, Runner] = {}
        self.models: dict[str, nn.Module] = {DENSE: clone(self.model)}
        if folds(self.model):
            self.models[FOLDED] = self.model

    @property
    def asked(self) -> str:
        """The form that is asked for, in float32."""
        return list(self.models)[-1]

    @property
    def last(self) -> Path:
        """The directory of the form that is kept."""
        return self.work / list(self.runs)[-1]

    def prepend(self, preparation: Preparation) -> Inside:
        """Let the last form prepare pictures by itself, and see how it does."""
        preparing = self.kind.preparing(preparation)
        pictures = Pictures(preparation, preparing, self.batch_size)
        bare = self.last
        whole = {name: self._prepended(name, preparation) for name in {self.asked, bare.name}}
        inside = pictures.inside(
            self._named(self.asked), whole[self.asked], whole[bare.name], self.runs[bare.name]
        )
        self.runs[f"{bare.name}{PICTURES}"] = whole[bare.name]
        return inside

    def _prepended(self, form: str, preparation: Preparation) -> Runner:
        place = self.work / f"{form}{PICTURES}"
        place.mkdir()
        self.kind.prepend(self.work / form, place, preparation)
        return self.kind.open(place, self.graphs[self.asked].names)

    def write_all(self, int8: bool) -> Agreement:
        """Write every form, and verify the one that is asked for."""
        for name, model in self.models.items():
            self._write(name, model)
        named, run = self._named(self.asked), self.runs[self.asked]
        with refusing(self.kind):
            agreement = verify(named, run, self.images, self.batch_size)
        self.progress()
        for name in tuple(self.models) if int8 else ():
            self._quantize(name)
        return agreement

    def _named(self, name: str) -> Named:
        return Named(self.models[name], self.graphs[name].names)

    def _write(self, name: str, model: nn.Module) -> None:
        (self.work / name).mkdir()
        self.graphs[name] = graph_of(model, self.batch_size)
        with refusing(self.kind):
            self.kind.write(self.graphs[name], self.work / name)
        self._open(name, name)

    def _quantize(self, name: str) -> None:
        assert self.images is not None  # `_check` says so
        with refusing(self.kind):
            small = quantized(self.kind, self.work / name, self.images, self.batch_size)
        self._open(small.name, name)

    def _open(self, form: str, name: str) -> None:
        """Open a form of one of the models, for all that is asked of it."""
        with refusing(self.kind):
            self.runs[form] = self.kind.open(self.work / form, self.graphs[name].names)
        self.progress()

    def report(self, agreement: Agreement, repeats: int) -> Report:
        """Time every form, and say what it came to."""
        sizes = (self.batch_size,) if self.batch_size else SIZES
        times = {size: self._times(size, repeats) for size in sizes}
        answers = self._answers()
        method = str(fold_of(self.model).method) if folds(self.model) else None
        return Report(
            target=self.kind.name,
            runtime=self.kind.runtime,
            model=type(self.model).__name__,
            method=method,
            batch_size=self.batch_size,
            outputs=self.graphs[self.asked].names,
            agreement=agreement,
            corners=tuple(self._corner(form, times, answers.get(form)) for form in self.runs),
            machine=machine(),
            versions=versions(),
        )

    def _times(self, size: int, repeats: int) -> dict[str, Throughput]:
        example = self.graphs[self.asked].example[:1].cpu()
        images = example.expand(size, *example.shape[1:]).contiguous()
        timed = {form: partial(_seconds, run, images) for form, run in self.runs.items()}
        seconds = interleave(timed, repeats, WARMUP, self.progress)
        return {form: Throughput.of(size, each) for form, each in seconds.items()}

    def _answers(self) -> dict[str, Answers]:
        """What every form says of the images, beside the dense model in eager torch, which answers
        once. Of all, what they give is all that is looked at."""
        if self.images is None:
            return {}
        dense = self.models[DENSE]
        whole = Served(partial(eager, self._named(DENSE)), dense)
        served = {form: Served(run, dense, self.batch_size) for form, run in self.runs.items()}
        answers = {form: Answers() for form in served}
        labels = (None,) if self.labels is None else self.labels.cpu().split(BATCH)
        with torch.inference_mode():
            for images, right in zip(self.images.cpu().split(BATCH), cycle(labels), strict=False):
                beside = look(whole, images)
                for form, kept in answers.items():
                    kept.add(look(served[form], images), beside, right)
        return answers

    def _corner(
        self, form: str, times: Mapping[int, Mapping[str, Throughput]], answers: Answers | None
    ) -> Corner:
        files = (self.work / form).rglob("*")
        return Corner(
            name=form,
            megabytes=sum(file.stat().st_size for file in files if file.is_file()) / 1e6,
            times={size: each[form] for size, each in times.items()},
            speedups={s: each[form].median / each[DENSE].median for s, each in times.items()},
            fidelity=answers.comparison.result() if answers and form != DENSE else None,
            top1=answers.top1 if answers else None,
        )


def _seconds(run: Runner, images: Tensor) -> float:
    start = now(images.device)
    run(images)
    return now(images.device) - start


def _check(
    images: Tensor | None, labels: Tensor | None, int8: bool, batch_size: int | None
) -> None:
    if images is not None and (not isinstance(images, Tensor) or images.dim() != 4):
        raise DataError("images: expected a tensor [N, C, H, W], prepared for the model")
    if images is not None and not len(images):
        raise DataError("images: there is none: give some, a hundred or more")
    if labels is not None and (images is None or tuple(labels.shape) != (len(images),)):
        raise DataError("labels: expected a tensor [N], the class of each of the images")
    if int8 and images is None:
        raise DataError(
            "int8 takes its ranges from images: give images=..., on the command line --data-dir"
        )
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise DataError(f"batch_size={batch_size!r}: expected a whole number from 1 up, or None")


def check_place(directory: Path, kind: Target) -> None:
    """Refuse a directory that holds anything but an earlier export for the same target."""
    if directory.is_file():
        raise DataError(f"{directory} is a file: give a directory")
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    try:
        held_target = json.loads((directory / FILE).read_text(encoding="utf-8"))["target"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{directory} holds other files: give a new directory") from None
    if held_target != kind.name:
        raise DataError(
            f"{directory} holds an export for {held_target!r}: give another directory for "
            f"{kind.name!r}"
        )


def _keep(source: Path, directory: Path, report: Report, model: nn.Module) -> None:
    """Put the files in their place, all at once."""
    preprocessing.write(model, source)
    text = json.dumps(report.to_json(), indent=2)
    (source / FILE).write_text(text + "\n", encoding="utf-8")
    with writing(directory, DataError), whole_directory(directory) as place:
        shutil.copytree(source, place, dirs_exist_ok=True)
