"""`export`: a model written for a runtime, verified there, and timed beside the dense one."""

import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vitfold.errors import DataError
from vitfold.exporting import preprocessing
from vitfold.exporting.graph import Graph, Named, graph_of
from vitfold.exporting.report import Corner, Report
from vitfold.exporting.serve import Served
from vitfold.exporting.targets import Runner, Target
from vitfold.exporting.targets import target as target_
from vitfold.exporting.verify import Agreement, verify
from vitfold.folding.calls import fold_of, folds
from vitfold.folding.fold import clone
from vitfold.saving.plans import Directory
from vitfold.tokens.modes import evaluating
from vitfold.tools.fidelity import fidelity
from vitfold.tools.measure import Progress, Throughput, interleave, now
from vitfold.tools.results import machine

FILE = "report.json"

DENSE, FOLDED, INT8 = "dense", "folded", "INT8"

SIZES = (1, 8)
"""Batch sizes that are timed where any is taken."""

CALIBRATION = 128
"""How many images ranges are taken from, for eight bits."""

PACKAGES = ("vitfold", "torch", "timm", "transformers", "onnx", "onnxruntime", "openvino", "nncf")


def export(
    model: nn.Module,
    directory: Directory,
    *,
    target: str = "onnx",
    images: Tensor | None = None,
    batch_size: int | None = None,
    int8: bool = False,
    repeats: int = 10,
    progress: Progress = lambda: None,
) -> Report:
    """Write a model, folded or dense, for a runtime, and say how it does there.

    What is written is compared with eager torch first, also on images in which tokens are alike;
    when it differs, nothing is kept. Beside it lie `preprocessor_config.json` and `report.json`.

    target: torch, aoti, onnx or openvino.
    images: `[N, C, H, W]` photographs, prepared for the model; by default random ones. With them
        the report has fidelity too.
    batch_size: the number of images that it takes; None: any.
    int8: in eight bits, with ranges from the images.
    progress: called after every step of `steps`.
    """
    kind = target_(target)
    kind.check(int8)
    _check(images, int8, batch_size)
    place = Path(directory)
    check_place(place, kind)
    with evaluating(model), tempfile.TemporaryDirectory() as work:
        job = Job(model, kind, Path(work), images, batch_size, progress)
        agreement = job.write_all(int8)
        report = job.report(agreement, repeats)
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
class Job:
    """One export under way: the forms of a model in directories of their own.

    work: where they lie until they are kept.
    """

    model: nn.Module
    kind: Target
    work: Path
    images: Tensor | None
    batch_size: int | None
    progress: Progress

    def __post_init__(self) -> None:
        self.graphs: dict[str, Graph] = {}
        self.models: dict[str, nn.Module] = {DENSE: clone(self.model)}
        if folds(self.model):
            self.models[FOLDED] = self.model
        self.forms: list[str] = []

    @property
    def last(self) -> Path:
        """The directory of the form that is asked for."""
        return self.work / self.forms[-1]

    def write_all(self, int8: bool) -> Agreement:
        """Write every form, and verify the one that was asked for."""
        for name, model in self.models.items():
            self._write(name, model)
        asked = self.forms[-1]
        named = Named(self.models[asked], self.graphs[asked].names)
        agreement = verify(named, self._open(asked), self.images, self.batch_size)
        self.progress()
        for name in tuple(self.models) if int8 else ():
            self._quantize(name)
        return agreement

    def _write(self, name: str, model: nn.Module) -> None:
        (self.work / name).mkdir()
        self.graphs[name] = graph_of(model, self.batch_size)
        self.kind.write(self.graphs[name], self.work / name)
        self.forms.append(name)
        self.progress()

    def _quantize(self, name: str) -> None:
        small = f"{name} {INT8}"
        (self.work / small).mkdir()
        assert self.images is not None  # `_check` says so
        images = self.images[:CALIBRATION].cpu()
        batches = _whole(images, self.batch_size) if self.batch_size else images.split(1)
        self.kind.quantize(self.work / name, self.work / small, batches)
        self.forms.append(small)
        self.progress()

    def _open(self, form: str) -> Runner:
        names = self.graphs[form.removesuffix(f" {INT8}")].names
        return self.kind.open(self.work / form, names)

    def report(self, agreement: Agreement, repeats: int) -> Report:
        """Time every form, and say what it came to."""
        runs = {form: self._open(form) for form in self.forms}
        sizes = (self.batch_size,) if self.batch_size else SIZES
        times = {size: self._times(runs, size, repeats) for size in sizes}
        method = str(fold_of(self.model).method) if folds(self.model) else None
        return Report(
            target=self.kind.name,
            runtime=self.kind.runtime,
            model=type(self.model).__name__,
            method=method,
            batch_size=self.batch_size,
            outputs=self.graphs[self._base].names,
            agreement=agreement,
            corners=tuple(self._corner(form, runs[form], times) for form in self.forms),
            machine=machine(),
            versions=_versions(),
        )

    @property
    def _base(self) -> str:
        return self.forms[-1].removesuffix(f" {INT8}")

    def _times(self, runs: Mapping[str, Runner], size: int, repeats: int) -> dict[str, Throughput]:
        example = self.graphs[self._base].example[:1].cpu()
        images = example.expand(size, *example.shape[1:]).contiguous()
        timed = {form: partial(_seconds, run, images) for form, run in runs.items()}
        seconds = interleave(timed, repeats, WARMUP, self.progress)
        return {form: Throughput.of(size, each) for form, each in seconds.items()}

    def _corner(
        self,
        form: str,
        run: Runner,
        times: Mapping[int, Mapping[str, Throughput]],
    ) -> Corner:
        beside = None
        if self.images is not None and form != DENSE:
            dense = Named(self.models[DENSE], self.graphs[DENSE].names)
            # Of both, what they give is all that is looked at.
            served, whole = (Served(r, dense.model, self.batch_size) for r in (run, dense))
            cpu = torch.device("cpu")
            beside = fidelity(served, self.images, dense=whole, device=cpu)
        files = (self.work / form).rglob("*")
        return Corner(
            name=form,
            megabytes=sum(file.stat().st_size for file in files if file.is_file()) / 1e6,
            times={size: each[form] for size, each in times.items()},
            speedups={s: each[form].median / each[DENSE].median for s, each in times.items()},
            fidelity=beside,
        )


def _seconds(run: Runner, images: Tensor) -> float:
    start = now(images.device)
    run(images)
    return now(images.device) - start


def _check(images: Tensor | None, int8: bool, batch_size: int | None) -> None:
    if images is not None and (not isinstance(images, Tensor) or images.dim() != 4):
        raise DataError("images: expected a tensor [N, C, H, W], prepared for the model")
    if images is not None and not len(images):
        raise DataError("images: there is none: give some, a hundred or more")
    if int8 and images is None:
        raise DataError(
            "int8 takes its ranges from images: give images=..., on the command line --data-dir"
        )
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise DataError(f"batch_size={batch_size!r}: expected a whole number from 1 up, or None")


def _whole(images: Tensor, size: int) -> Sequence[Tensor]:
    """Batches of just that size."""
    batches = [batch for batch in images.split(size) if len(batch) == size]
    if not batches:
        raise DataError(f"{len(images)} images are fewer than a batch of {size}: give more")
    return batches


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
    try:
        with _beside(directory) as part:
            shutil.copytree(source, part)
            if directory.exists():
                shutil.rmtree(directory)
            part.replace(directory)
    except OSError as error:
        raise DataError(f"{directory} cannot be written: {error.strerror or error}") from error


@contextmanager
def _beside(directory: Path) -> Iterator[Path]:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".export-") as place:
        yield Path(place) / "files"


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
