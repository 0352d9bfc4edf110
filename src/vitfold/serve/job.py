"""What a directory of embeddings is for: whoever goes on with it has to want the same."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from vitfold.errors import DataError, one_line
from vitfold.files import whole, writing
from vitfold.folding.calls import folds
from vitfold.saving import learned
from vitfold.saving.subject import describe
from vitfold.serve.settings import Settings
from vitfold.tools.digest import fingerprint
from vitfold.tools.results import version

FORMAT = 1

PACKAGES = ("vitfold", "torch", "torchvision", "timm", "transformers", "pillow", "numpy", "pyarrow")

WORDS = {"batch_size": "--batch-size", "shard_size": "--shard-size", "threads": "threads"}


@dataclass(frozen=True)
class Job:
    """One corpus, one model, one fold.

    model: the model as a plan describes it.
    fold: the method, its numbers for every block, and a fingerprint of what it learned; None of a
        dense model.
    preparation: how images are prepared, for people to read.
    shapes: what the model gives for an image.
    images, skipped: how many images the listing has, and how many files it left out, by endings.
    listing: SHA-256 of it.
    """

    source: str
    column: str | None
    model: dict[str, Any]
    fold: dict[str, Any] | None
    preparation: dict[str, Any]
    settings: dict[str, Any]
    shapes: dict[str, list[int] | None]
    versions: dict[str, str]
    images: int = 0
    skipped: dict[str, int] | None = None
    listing: str = ""
    format: int = FORMAT

    @property
    def fold_name(self) -> str:
        """The fold in words."""
        return "dense" if self.fold is None else str(self.fold["words"])

    def write(self, path: Path) -> None:
        """Write it, whole."""
        with writing(path, DataError), whole(path) as part:
            part.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def refuse_other(self, before: "Job", directory: Path) -> None:
        """Refuse to go on with what another job began."""
        for what, theirs, ours in self._differences(before):
            raise DataError(
                f"{directory} has embeddings of {what} {theirs}, and this is {ours}: give another "
                "directory, or the same again"
            )

    def _differences(self, before: "Job") -> Any:
        names = before.model["name"], self.model["name"]
        if names[0] != names[1]:
            yield "the model", *names
        if (before.fold, before.fold_name) != (self.fold, self.fold_name):
            folds_ = [job.fold_name for job in (before, self)]
            same = " with other numbers" if folds_[0] == folds_[1] else ""
            yield "the fold", folds_[0], f"{folds_[1]}{same}"
        if before.model != self.model:
            yield "the model", names[0], f"{names[1]} with other weights or arguments"
        for name in ("source", "column"):
            if (theirs := getattr(before, name)) != (ours := getattr(self, name)):
                yield f"the {name}", theirs, ours
        for name, theirs in before.settings.items():
            if theirs != (ours := self.settings[name]):
                yield WORDS.get(name, f"--{name}"), theirs, ours
        if before.preparation != self.preparation:
            yield "the preprocessing", before.preparation, self.preparation


def job_of(
    model: nn.Module,
    source: str,
    column: str | None,
    preparation: dict[str, Any],
    settings: Settings,
    shapes: dict[str, list[int] | None],
) -> Job:
    """What is to be done."""
    plan = describe(model)
    fold = None
    if plan.method is not None:
        fold = {
            "words": str(plan.method),
            "method": plan.method.to_json(),
            "schedule": list(plan.schedule),
            "learned": fingerprint(learned.state(model)) if learned.state(model) else None,
        }
    versions = {name: number for name in PACKAGES if (number := version(name)) is not None}
    dense = asdict(plan.model)
    values = (source, column, dense, fold, preparation, settings.to_json(), shapes, versions)
    return Job(*json.loads(json.dumps(values, default=str)))


def read(path: Path) -> Job | None:
    """The job of a directory; None where there is none yet."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error
    if content.get("format") != FORMAT or content.keys() != {f.name for f in fields(Job)}:
        raise DataError(f"{path} was written by another version of vitfold: give a new directory")
    return Job(**content)


def is_dense(model: nn.Module) -> bool:
    """Whether nothing is folded in a model."""
    return not folds(model)
