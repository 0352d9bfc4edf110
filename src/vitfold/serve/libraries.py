"""Libraries of the extra `embed`, imported when they are used."""

import importlib
from typing import Any

from vitfold.errors import missing


def arrow() -> Any:
    """pyarrow."""
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise missing("pyarrow", "embed") from None


def parquet() -> Any:
    """pyarrow's way of reading and writing Parquet."""
    arrow()
    return importlib.import_module("pyarrow.parquet")


def filesystems() -> Any:
    """fsspec, which opens addresses of all kinds."""
    try:
        return importlib.import_module("fsspec")
    except ImportError:
        raise missing("fsspec", "embed") from None


def ray() -> Any:
    """Ray, with Ray Data."""
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ImportError:
        raise missing("ray", "embed") from None
