"""Rows of results in files: JSON or CSV, by the ending of the name."""

import csv
import importlib.metadata
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vitfold.errors import DataError, one_line
from vitfold.files import whole, writing

Rows = Sequence[Mapping[str, Any]]


LONG = "sweep"
"""The command whose results took hours."""


def check_results_file(path: Path, command: str) -> None:
    """Refuse a results file before the work of a command, not after it."""
    if path.suffix not in (".json", ".csv"):
        raise DataError(f"results file {path.name!r}: expected a name that ends in .json or .csv")
    if not path.parent.is_dir():
        raise DataError(f"results file {path}: there is no directory {path.parent}")
    if path.is_dir():
        raise DataError(f"results file {path} is a directory: give a file in it")
    if command != LONG and path.suffix == ".json" and path.is_file() and _holds_sweep(path):
        raise DataError(f"results file {path} holds a sweep: give another name")
    if not os.access(path.parent, os.W_OK):
        raise DataError(f"results file {path}: nobody may write to {path.parent} here")


def _holds_sweep(path: Path) -> bool:
    try:
        return read(path).get("command") == LONG
    except DataError:
        return False


def write(path: Path, rows: Rows, about: Mapping[str, Any]) -> None:
    """Rows, and in JSON what they are about; the file is there whole or not at all."""
    write_text(path, _csv(rows) if path.suffix == ".csv" else _json(rows, about))


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote: what it is about, and its rows. Figures of a CSV file come as text."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".csv":
            return {"rows": list(csv.DictReader(io.StringIO(text)))}
        content: Any = json.loads(text)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as results: {one_line(error)}") from error
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} holds no results of vitfold: it has no rows")
    return dict(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file; the earlier one stays until the new one is complete."""
    with writing(path, DataError), whole(path) as part:
        part.write_text(text, encoding="utf-8")


def version(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


PACKAGES = ("vitfold", "torch", "timm", "transformers", "onnx", "onnxruntime", "openvino", "nncf")


def versions() -> dict[str, str]:
    """The versions of what figures depend on, as far as it is installed."""
    return {name: number for name in PACKAGES if (number := version(name)) is not None}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _json(rows: Rows, about: Mapping[str, Any]) -> str:
    return json.dumps({**about, "machine": machine(), "rows": list(rows)}, indent=2) + "\n"


def _csv(rows: Rows) -> str:
    out = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(out, fieldnames=list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
