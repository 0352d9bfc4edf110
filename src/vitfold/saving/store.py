"""The directory of a plan: read within limits, written so that it holds a plan at every moment."""

import contextlib
import dataclasses
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitfold.errors import PlanError, one_line
from vitfold.files import remove_unfinished, whole
from vitfold.saving.fields import FILE, clip
from vitfold.saving.schema import LIMIT, Plan, decode, encode

WEIGHTS = "weights.safetensors"

SPARE = "weights-new.safetensors"
"""Where weights lie while a plan that is replaced still has the other name."""

HEADER = 2**23
"""The most bytes that the header of a file may have."""

ATTEMPTS = 100
"""How often plan and weights are read, while somebody else writes there again and again."""

Write = Callable[[Path], object]


HUB = "hub:"
"""What the name of a fold on the hub begins with."""

PATTERNS = (FILE, "*.safetensors")
"""Of a repository on the hub nothing else is read, and nothing is run."""


def place(directory: object) -> Path:
    """The path of a directory to write to."""
    if is_on_hub(directory):
        raise PlanError(f"{directory} is on the hub: write there by vitfold.push")
    return _path(directory)


def source(directory: object) -> Path:
    """The path of a directory to read from; of a fold on the hub, where it was fetched to."""
    return fetched(str(directory)) if is_on_hub(directory) else _path(directory)


def _path(directory: object) -> Path:
    if directory == "":
        raise PlanError("'' is no path: give the name of a directory")
    try:
        return Path(directory)  # type: ignore[arg-type]
    except TypeError:
        raise PlanError(f"{directory!r} is no path: give the name of a directory") from None


def is_on_hub(name: object) -> bool:
    """Whether a name is that of a fold on the hub."""
    return isinstance(name, str | os.PathLike) and str(os.fspath(name)).startswith(HUB)


def repository_of(name: str) -> tuple[str, str | None]:
    """The repository that a name on the hub stands for, and its revision."""
    repository, _, revision = name.removeprefix(HUB).partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise PlanError(f"{name!r}: expected hub:USER/NAME or hub:USER/NAME@REVISION")
    return repository, revision or None


def fetched(name: str) -> Path:
    """Where a fold on the hub lies in the hub's cache, all of one revision; without a network, what
    was fetched last."""
    from huggingface_hub import snapshot_download

    repository, revision = repository_of(name)
    try:
        files = snapshot_download(repository, revision=revision, allow_patterns=[*PATTERNS])
    # The hub, its cache and the way to it raise whatever they like.
    except Exception as error:
        raise PlanError(f"{name} cannot be fetched: {one_line(error)}") from error
    if not (Path(files) / FILE).is_file():
        raise PlanError(f"{name} has no {FILE}: expected what vitfold.push put there")
    return Path(files)


def read(directory: Path) -> bytes:
    """What is in plan.json, if that is a file of a decent size."""
    path = directory / FILE
    try:
        if directory.is_file():
            raise PlanError(f"{str(directory)!r} is a file: give the directory that it lies in")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise PlanError(f"{str(path)!r} is not a file: expected a plan that vitfold.save wrote")
        if status.st_size > LIMIT:
            raise PlanError(f"{FILE}: {status.st_size} bytes: expected at most {LIMIT}")
        with path.open("rb") as file:
            return file.read(LIMIT + 1)
    except FileNotFoundError:
        raise PlanError(_absent(directory)) from None
    except PlanError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise PlanError(f"{str(path)!r} cannot be read: {clip(error)}") from error


def _absent(directory: Path) -> str:
    what = f"has no {FILE}" if directory.is_dir() else "is no directory"
    return f"{str(directory)!r} {what}: give a directory that vitfold.save wrote"


def open_together(directory: Path) -> tuple[Plan, dict[str, Tensor]]:
    """The plan in a directory and its tensors, those of one moment: somebody may be saving there.

    As long as a plan is in place, so is the file of weights that it names.
    """
    for _ in range(ATTEMPTS):
        before = _stamp(directory)
        plan = decode(read(directory))
        try:
            tensors = read_tensors(directory, plan.weights.file) if plan.weights else {}
        except PlanError:
            if _stamp(directory) == before:
                raise
            continue
        if _stamp(directory) == before:
            return plan, tensors
    raise PlanError(f"{str(directory)!r} is written to again and again: load it after that")


def _stamp(directory: Path) -> tuple[int, ...] | None:
    """What changes when plan.json is replaced."""
    try:
        status = (directory / FILE).stat()
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def read_tensors(directory: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a file in the directory."""
    path = directory / name
    _check_place(directory, path)
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    # The library says in many ways that a file is broken.
    except Exception as error:
        raise PlanError(f"{name}: cannot be read as safetensors: {clip(error)}") from error


def _check_place(directory: Path, path: Path) -> None:
    try:
        real = path.resolve(strict=True)
        inside = real.is_relative_to(_bounds(directory.resolve(strict=True)))
    except (OSError, RuntimeError):
        raise PlanError(f"{FILE}: weights.file={path.name!r}: no such file") from None
    if not inside:
        raise PlanError(f"{FILE}: weights.file={path.name!r}: a link that leaves the directory")
    if not real.is_file():
        raise PlanError(f"{FILE}: weights.file={path.name!r}: not a file")


def _bounds(directory: Path) -> Path:
    """What links in a directory may not leave: itself; in the hub's cache, where all files are
    links, all that it holds of the repository."""
    revisions = directory.parent
    cached = revisions.name == "snapshots" and revisions.parent.name.startswith("models--")
    return revisions.parent if cached else directory


def _check_header(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise PlanError(f"{path.name}: cannot be read: {error.strerror}") from error
    if start[8:] != b"{":
        raise PlanError(
            f"{path.name}: not a safetensors file (it starts with {start[:4]!r}): no other format, "
            "such as a pickle, is ever opened"
        )
    size = int.from_bytes(start[:8], "little")
    if size > HEADER:
        raise PlanError(f"{path.name}: a header of {size} bytes: expected at most {HEADER}")


def write(directory: Path, plan: Plan, write_weights: Write | None, alone: bool = True) -> None:
    """Replace the plan in the directory, and its weights, at one moment: when plan.json is renamed.

    Until then everything of the plan before is there, under its own name.

    alone: whether nobody else can be writing there; what others left unfinished goes then.
    """
    for name in (FILE, WEIGHTS, SPARE):
        remove_unfinished(directory / name, alone)
    before = _weights(directory)
    if write_weights is None:
        _put(directory, FILE, _writes(encode(plan)))
        now = None
    else:
        free = before == SPARE or not (directory / WEIGHTS).exists()
        now = _commit(directory, plan, write_weights, WEIGHTS if free else SPARE)
    with contextlib.suppress(OSError):
        for name in (WEIGHTS, SPARE):
            if name in (before, SPARE) and name != now:
                (directory / name).unlink(missing_ok=True)


def _weights(directory: Path) -> str | None:
    """The file of weights that the plan in the directory names, if there is such a plan."""
    try:
        weights = decode(read(directory)).weights
    except PlanError:
        return None
    return weights.file if weights else None


def _commit(directory: Path, plan: Plan, write_weights: Write, name: str) -> str:
    """Write weights under a name, then the plan that names them; the name that they end up with."""
    encoded = encode(_named(plan, name))
    _put(directory, name, write_weights)
    _put(directory, FILE, _writes(encoded))
    if name == WEIGHTS:
        return name
    try:
        # A link: both names are there while plan.json changes from one to the other.
        _put(directory, WEIGHTS, lambda path: os.link(directory / name, path))
        _put(directory, FILE, _writes(encode(_named(plan, WEIGHTS))))
    # The new plan is complete as it is, for instance on a file system without links.
    except OSError:
        return name
    return WEIGHTS


def _named(plan: Plan, name: str) -> Plan:
    if plan.weights is None:
        raise PlanError("a plan without weights names no file of them")
    return dataclasses.replace(plan, weights=dataclasses.replace(plan.weights, file=name))


def _writes(data: bytes) -> Write:
    return lambda path: path.write_bytes(data)


def _put(directory: Path, name: str, write: Write) -> None:
    with whole(directory / name) as path:
        write(path)


def write_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name, as they are."""
    tensors: dict[str, Tensor] = {}
    owned: set[int] = set()
    for name, tensor in state.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        # The format has no shared memory: what is tied is written twice.
        tensors[name] = plain.clone() if place in owned else plain
        owned.add(place)
    save_file(tensors, path, metadata={"format": "pt"})
