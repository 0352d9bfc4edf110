"""Checkpoints of a training: safetensors and JSON in a directory that is there whole or not at all.

A checkpoint is a tree of dicts, lists, numbers and words with tensors among its leaves. The tensors
lie in one file; the tree, with their names in their places, and the digest of that file in another.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitfold.errors import TrainError, one_line
from vitfold.files import readable

TENSORS, TREE = "tensors.safetensors", "state.json"

FORMAT = 1

_NAME = re.compile(r"step-(\d{9})")


def write(directory: Path, step: int, state: Any, keep: int) -> bool:
    """Write the checkpoint of a step and remove all but the last `keep`, later ones too: the
    training went on from an earlier one. Returns whether that succeeded.

    What goes wrong, a full disk for instance, is a warning: the checkpoints before are still there.
    """
    place, part = directory / f"step-{step:09d}", directory / f".step-{step:09d}.part"
    try:
        _clear(part)
        part.mkdir(parents=True)
        _fill(part, state)
        _clear(place)
        os.replace(part, place)
        _to_disk(directory)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            _clear(part)
        warnings.warn(f"no checkpoint at step {step}: {one_line(error)}", stacklevel=2)
        return False
    good = [old for at, old in _all(directory) if at <= step][:keep]
    for _, old in _all(directory):
        if old not in good:
            with contextlib.suppress(OSError):
                _clear(old)
    return True


def _fill(directory: Path, state: Any) -> None:
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, "", tensors)
    save_file(tensors, directory / TENSORS)
    readable(directory / TENSORS)
    _to_disk(directory / TENSORS)
    file = {"format": FORMAT, "sha256": _digest(directory / TENSORS), "tree": tree}
    (directory / TREE).write_text(json.dumps(file), encoding="utf-8")
    _to_disk(directory / TREE)
    _to_disk(directory)


def read(directory: Path) -> tuple[int, Any] | None:
    """The last checkpoint that is whole, and its step; broken ones are passed by with a warning."""
    for step, place in _all(directory):
        try:
            return step, _open(place)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{place} is passed by: {one_line(error)}", stacklevel=2)
    return None


def weights(place: Path) -> dict[str, Tensor]:
    """The model's weights in one checkpoint."""
    try:
        state: dict[str, Tensor] = _open(place)["model"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainError(f"{place} is no checkpoint of a training: {one_line(error)}") from error
    return state


def last(directory: Path) -> Path | None:
    """The newest checkpoint; None without any."""
    newest_first = _all(directory)
    return newest_first[0][1] if newest_first else None


def tidy(directory: Path) -> None:
    """Remove half-written checkpoints of a run that was stopped."""
    for part in directory.glob(".step-*.part"):
        _clear(part)


def _all(directory: Path) -> list[tuple[int, Path]]:
    """All checkpoints, newest first."""
    if not directory.is_dir():
        return []
    places = [(_NAME.fullmatch(place.name), place) for place in directory.iterdir()]
    return sorted(((int(name[1]), place) for name, place in places if name), reverse=True)


def _open(place: Path) -> Any:
    state = json.loads((place / TREE).read_text(encoding="utf-8"))
    if state["format"] != FORMAT:
        raise ValueError(f"format {state['format']!r}: expected {FORMAT}")
    if state["sha256"] != _digest(place / TENSORS):
        raise ValueError(f"{TENSORS} is not what was written")
    with safe_open(place / TENSORS, framework="pt") as file:
        return _unpack(state["tree"], {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON has it; what JSON has no form for is an object with one key."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": path}
    if isinstance(value, dict):
        return {"items": [[k, _pack(v, f"{path}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        packed = [_pack(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]
        return packed if isinstance(value, list) else {"tuple": packed}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TrainError(f"{path.strip('/')}: a checkpoint cannot hold a {type(value).__name__}")


def _unpack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpack(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    [(kind, content)] = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_unpack(value, tensors) for value in content)
    return {key: _unpack(value, tensors) for key, value in content}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _clear(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
