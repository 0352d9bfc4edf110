"""Options that commands share, under timm's names, and what they stand for.

Libraries and rooms that need torch are imported where an option is used, not where it is declared:
help shows declarations alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitfold.cli import values
from vitfold.cli.groups import Group, option
from vitfold.cli.names import DECODERS, METHODS, RUNTIMES, VOID
from vitfold.errors import DataError, MethodError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vitfold.data import Source
    from vitfold.exporting.runtime import Runtime as Measured
    from vitfold.methods import Base
    from vitfold.segment import Labels, SceneSource

MODEL_HELP = (
    "A timm name, digits (the embedded model), hf:NAME, the directory of a saved plan or model, "
    "hub:USER/NAME (one that was pushed), or FILE.py:function, which is run and returns a model of "
    "your own."
)
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
ModelKwargs = Annotated[
    list[str],
    typer.Option("--model-kwargs", metavar="KEY=VALUE", help="For the model; may be repeated."),
]
Pretrained = Annotated[bool, typer.Option(help="Load the published weights.")]
ImageSize = Annotated[int | None, typer.Option("--img-size", min=1, help="Side of the images.")]
MethodName = Annotated[
    str | None, typer.Option("--method", help=f"{', '.join(METHODS)}.", show_default="tome")
]
Reduction = Annotated[
    str | None,
    typer.Option("--r", help="Tokens per block: 13, or 16,16,8 for each, or 13:-1 for a ramp."),
]
Share = Annotated[
    float | None, typer.Option("--flops", help="Share of the dense FLOPs, in place of --r.")
]
MethodKwargs = Annotated[
    list[str],
    typer.Option("--method-kwargs", metavar="KEY=VALUE", help="For the method: cue=v, skip=2, ..."),
]
PlanDirectory = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="DIR",
        help="A saved plan for this model, or hub:USER/NAME, in place of a method; its weights "
        "too, if it has them.",
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, ...")]
Amp = Annotated[bool, typer.Option("--amp", help="Mixed precision.")]
AmpDtype = Annotated[str, typer.Option(help="Lower precision of --amp: bfloat16 or float16.")]


def _results_file(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        from vitfold.tools.results import check_results_file

        check_results_file(path, str(context.info_name))
    return path


ResultsFile = Annotated[
    Path | None,
    typer.Option("--results-file", help="Rows to this .json or .csv file.", callback=_results_file),
]


Dataset = Annotated[
    str, typer.Option(help="timm's dataset name: hfds/..., wds/..., torch/cifar10, ...")
]
DataDirectory = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="Folder or tar of class folders; without labels, of any pictures."
    ),
]
Split = Annotated[str, typer.Option(help="Part of the dataset.")]
ClassMap = Annotated[str, typer.Option(help="File that maps class names to labels.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only N images, evenly spaced.")]
Workers = Annotated[int, typer.Option("--workers", "-j", min=0, help="Processes that read images.")]

TaskName = Annotated[
    str, typer.Option("--task", help="classify, or segment: a class for every pixel.")
]
Decoder = Annotated[
    str, typer.Option("--decoder", help=f"Of a new segmenter: {' or '.join(DECODERS)}.")
]
Stride = Annotated[
    int | None, typer.Option(min=1, help="Pixels between sliding windows.", show_default="a window")
]

TASKS = ("classify", "segment")

DTYPES = ("bfloat16", "float16")


@dataclass(frozen=True)
class Choice(Group):
    """A method as the command line gives it."""

    panel = "Method"

    method: MethodName = None
    r: Reduction = None
    flops: Share = None
    method_kwargs: MethodKwargs = field(default_factory=list)

    @property
    def is_set(self) -> bool:
        """Whether there is anything of a method on the command line."""
        return any(value not in (None, []) for value in vars(self).values())

    def build(self) -> Base:
        """The method. Where nothing says how far to reduce, it costs 0.6 of the dense model."""
        from vitfold.methods import create_method
        from vitfold.methods.registry import named

        kind = named(self.method or "tome")
        if kind.command:
            raise MethodError(
                f"{kind.name} takes a look at images first: run vitfold {kind.command} MODEL "
                "--data-dir ... --output DIR, then give DIR as the model"
            )
        options = values.parse(self.method_kwargs)
        for name, value in (("r", self.r), ("flops", self.flops)):
            if value is not None and name in options:
                raise MethodError(f"--{name} {value} and {name}={options[name]!r}: give one")
        if self.r is not None:
            options["r"] = values.reduction(self.r)
        if self.flops is not None:
            options["flops"] = self.flops
        if "r" not in options and "flops" not in options and getattr(kind, "by_share", True):
            options["flops"] = 0.6
        return create_method(kind.name, options)


@dataclass(frozen=True)
class ModelOptions(Group):
    """How a model that has a name is made, and where it runs."""

    panel = "Model"

    model_kwargs: ModelKwargs = field(default_factory=list)
    pretrained: Pretrained = True
    img_size: ImageSize = None
    plan: PlanDirectory = None
    device: Device = "cpu"

    @property
    def on(self) -> torch.device:
        """The device, which is there."""
        return values.device(self.device)

    def model(self, name: str) -> nn.Module:
        """The model, in eval mode, with the plan on it."""
        from vitfold.cli.work.models import model, planned

        made = model(name, self.model_kwargs, self.pretrained, self.img_size, self.on)
        return planned(made, self.plan)

    def image_model(self, name: str) -> nn.Module:
        """The same, of a model that says something of an image, not of its pixels."""
        from vitfold.segment import Segmenter
        from vitfold.tools.answers import ONLY

        model = self.model(name)
        if isinstance(model, Segmenter):
            raise DataError(ONLY.format(type(model).__name__))
        return model


@dataclass(frozen=True)
class Images(Group):
    """Where images and their labels are."""

    panel = "Data"

    dataset: Dataset = ""
    data_dir: DataDirectory = None
    split: Split = "validation"
    class_map: ClassMap = ""

    @property
    def source(self) -> Source:
        """The source of images with one class each, as `vitfold.data` reads it."""
        from vitfold.data import Source

        return Source(self.dataset, self.data_dir, self.split, self.class_map)

    def scenes(self, labels: Labels) -> SceneSource:
        """The source of images with a class for every pixel, as `vitfold.segment` reads it."""
        if self.data_dir is None:
            raise DataError(
                "no data: give --data-dir FOLDER (or tar) with images/ and annotations/ in it"
            )
        if self.dataset or self.class_map:
            raise DataError("--task segment reads --data-dir: leave out --dataset and --class-map")
        from vitfold.segment import SceneSource

        return SceneSource(self.data_dir, self.split, labels)


@dataclass(frozen=True)
class TrainingImages(Images):
    """Images of the split `train`, unless another is given: for commands that learn from images."""

    split: Annotated[str, typer.Option(help="Part of the dataset that is looked at.")] = "train"


@dataclass(frozen=True)
class Task(Group):
    """What is asked of a model: the class of an image, or of every pixel."""

    panel = "Task"

    task: TaskName = TASKS[0]
    ignore_label: Annotated[int, option("What annotations call a pixel of no class.", min=0)] = VOID
    reduce_zero_label: Annotated[
        bool, option("0 is no class, and classes begin at 1.", "--reduce-zero-label")
    ] = False

    @property
    def pixels(self) -> bool:
        """Whether it is of every pixel."""
        return segments(self.task)

    def labels(self, classes: int) -> Labels:
        """What the numbers in annotations mean."""
        from vitfold.segment import Labels

        return Labels(classes, self.ignore_label, self.reduce_zero_label)

    def model(self, options: ModelOptions, name: str) -> nn.Module:
        """A model that answers."""
        from vitfold.segment.metrics import as_segmenter

        return as_segmenter(options.model(name)) if self.pixels else options.image_model(name)

    def source(self, images: Images, model: nn.Module) -> Source | SceneSource:
        """Images whose labels are the model's."""
        if not self.pixels:
            return images.source
        from vitfold.segment.metrics import as_segmenter

        return images.scenes(self.labels(as_segmenter(model).classes))


@dataclass(frozen=True)
class Precision(Group):
    """Mixed precision or full."""

    panel = "Precision"

    amp: Amp = False
    amp_dtype: AmpDtype = "bfloat16"

    @property
    def dtype(self) -> torch.dtype | None:
        """The lower precision, or None."""
        if self.amp_dtype not in DTYPES:
            raise DataError(f"--amp-dtype {self.amp_dtype!r}: expected bfloat16 or float16")
        if not self.amp:
            return None
        import torch

        return getattr(torch, self.amp_dtype)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Runtime(Group):
    """What models are measured in."""

    panel = "Runtime"

    runtime: Annotated[
        str, option(f"What models run in while they are measured: {', '.join(RUNTIMES)}.")
    ] = RUNTIMES[0]
    int8: Annotated[
        bool, option("In eight bits, with ranges from the images that there are.", "--int8")
    ] = False

    def compiled(self) -> Runtime:
        """The same with `--compile`, which is a word for one of them."""
        if self.runtime not in ("eager", "compile"):
            raise DataError(f"--compile and --runtime {self.runtime}: give one")
        return replace(self, runtime="compile")

    def on(self, device: torch.device, precision: Precision) -> Measured:
        """The runtime, which is there, and takes that device and precision."""
        from vitfold.exporting.runtime import Runtime as Measured

        measured = Measured(self.runtime, self.int8)
        if not measured.in_torch and device.type != "cpu":
            raise DataError(
                f"--runtime {self.runtime} runs on the CPU: leave out --device {device}"
            )
        if not measured.in_torch and precision.amp:
            raise DataError(
                f"--amp is for eager and compile, not for --runtime {self.runtime}: leave out one"
            )
        return measured


def segments(task: str) -> bool:
    """Whether every pixel gets a class."""
    if task not in TASKS:
        raise DataError(f"--task {task!r}: expected {' or '.join(TASKS)}")
    return task == "segment"


def no_data() -> DataError:
    """The error where labelled images are needed and nobody says where they are."""
    return DataError("no data: give --data-dir FOLDER (or tar) or --dataset NAME")
