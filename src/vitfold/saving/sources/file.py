"""A file of a user's own as a source: a function in it makes the model.

Who names a file has it run. A plan only says by which file and function its model was made.
"""

import contextlib
import hashlib
import importlib.util
import inspect
import keyword
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from vitfold.errors import PlanError, UnsupportedModel, nearest, one_line
from vitfold.saving import fields
from vitfold.saving.fields import clip
from vitfold.saving.sources.base import Source

NAME = "file"

MARK = "_vitfold_file"
"""The attribute of a model that says by which file and function it was made, with which
arguments."""

FORM = "FILE.py:function"

LONGEST, WORD, MANY, DEEPEST = 1024, 1000, 512, 4
"""The most characters of a name and of a text among arguments, the most items of a list, and how
deep lists lie in each other."""


class File(Source):
    """Functions in files, which make models when a user names them and never for a plan."""

    builds = False

    def identify(self, model: nn.Module) -> str | None:
        """The file and function that a model was made by, as the user wrote them."""
        mark = vars(model).get(MARK)
        return None if mark is None else str(mark["name"])

    def arguments(self, model: nn.Module) -> dict[str, Any] | None:
        """What the function was given; None where JSON does not hold it."""
        arguments: dict[str, Any] | None = vars(model)[MARK]["arguments"]
        return arguments

    def check(self, name: object, arguments: object) -> None:
        """Refuse what is no name of a file and a function, and what no user gives a function."""
        if not (isinstance(name, str) and len(name) <= LONGEST and _is_plain(name)):
            raise fields.refusal("model.name", name, f"{FORM}, as a user wrote it")
        if not isinstance(arguments, dict):
            raise fields.refusal("model.arguments", arguments, "an object with arguments")
        for key, value in arguments.items():
            path = fields.join("model.arguments", key)
            fields.text(path, key, r"[A-Za-z_]\w{0,63}", "the name of an argument")
            _check_value(path, value, DEEPEST)

    def build(self, name: str, arguments: dict[str, Any], pretrained: bool) -> nn.Module:
        """No model, but what to do for one: the file may hold any code, of anybody."""
        values = [f"{key}={value!r}" for key, value in arguments.items()]
        call = clip(", ".join([repr(name), *values]), 160)
        raise PlanError(
            f"{fields.FILE}: model.source={NAME!r}: the model was made by a file, which a plan "
            f"never runs: if you trust it, vitfold.load(directory, vitfold.create_model({call})), "
            f"or on the command line {command_line(name, arguments)} --plan DIR"
        )


def command_line(name: str, arguments: Mapping[str, Any]) -> str:
    """What stands for a model on the command line, in words for a shell."""
    pairs = [f"{key}={_word(value)}" for key, value in arguments.items()]
    return clip(shlex.join([name, *(["--model-kwargs", *pairs] if pairs else [])]), 160)


def _word(value: object) -> str:
    bare = isinstance(value, str) and value.isidentifier() and not keyword.iskeyword(value)
    return str(value) if bare else repr(value)


def _is_plain(name: str) -> bool:
    named = parts(name)
    return named is not None and named[1].isidentifier() and name.isprintable()


def _check_value(path: str, value: object, levels: int) -> None:
    """Refuse what no user writes as an argument."""
    if levels and isinstance(value, list | dict):
        inner = list(value.values()) if isinstance(value, dict) else value
        for each in fields.items(path, inner, 0, MANY):
            _check_value(path, each, levels - 1)
    elif isinstance(value, str):
        if len(value) > WORD:
            raise fields.refusal(path, value, f"at most {WORD} characters")
    elif value is not None and not isinstance(value, bool):
        fields.number(path, value, -fields.LARGEST, fields.LARGEST)


REACHED: set[str] = set()
"""Directories of files that were run."""


def beside() -> list[ModuleType]:
    """Modules that were imported from the directory of a file that was run: another process may
    not find them."""
    tops = {name.partition(".")[0] for name in sys.modules} - {"vitfold"}
    modules = [sys.modules[name] for name in sorted(tops) if name in sys.modules]
    return [module for module in modules if _root(module) in REACHED]


def _root(module: ModuleType) -> str | None:
    """The directory by which a module that lies in no other was found."""
    place = next(iter(getattr(module, "__path__", ())), getattr(module, "__file__", None))
    return None if place is None else os.path.realpath(os.path.dirname(place))


def parts(name: str) -> tuple[str, str] | None:
    """File and function of `FILE.py:function`; None of any other name. Only the last colon counts:
    `C:\\models\\mine.py:build`."""
    path, _, function = name.rpartition(":")
    within = {"/", "\\"} & set(function)
    return (path, function) if path.endswith(".py") and not within else None


def hint(name: str) -> str:
    """What is missing of the name of a file that is there; empty of any other name."""
    if name.endswith(".py") and os.path.isfile(name):
        return f": name the function in it that makes the model too, as {FORM}"
    path, _, _ = name.rpartition(":")
    return f": expected {FORM}" if os.path.isfile(path) else ""


def make(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    """The model that a function in a file makes, in eval mode. The file is run.

    pretrained: goes to a function that has a parameter of this name, and is nothing to others.
    """
    function = _function(name)
    arguments = {"pretrained": pretrained} if takes(name, "pretrained") else {}
    _check_call(name, function, arguments | kwargs)
    mark = {"name": name, "arguments": fields.plain(kwargs)}
    try:
        with _reachable(_place(name)):
            model = function(**arguments, **kwargs)
    # A user's own code raises whatever it likes, and may end the process.
    except (Exception, SystemExit) as error:
        raise _refusal(name, f"it raised {_words(error, _place(name))}") from error
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise _refusal(name, f"it returned a {kind}: expected a torch.nn.Module")
    vars(model)[MARK] = mark
    return model.eval()


def takes(name: str, parameter: str) -> bool:
    """Whether a function in a file has a parameter of that name. The file is run."""
    return parameter in _parameters(_function(name))


def _refusal(name: str, why: str) -> UnsupportedModel:
    return UnsupportedModel(f"{clip(name, 200)} cannot be made: {why}")


def _words(error: BaseException, path: Path) -> str:
    """The kind of an error, what it says, and the last line of the file that led to it."""
    kind, trace, line = type(error).__name__, error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    says = f"{kind}: {clip(one_line(error))}" if str(error) else kind
    return says if line is None else f"{says} (line {line})"


def _place(name: str) -> Path:
    """The path of a file by its name, which stays when the working directory changes."""
    path, _ = parts(name) or (name, "")
    return Path(os.path.abspath(path))


def _function(name: str) -> Callable[..., Any]:
    """The function of that name; the file is imported where it is not yet."""
    _, function = parts(name) or (name, "")
    if not function:
        raise _refusal(name, f"no function is named: expected {FORM}")
    module = _module(name)
    value = getattr(module, function, None)
    if value is None:
        own = (n for n, v in vars(module).items() if _is_own(v, module))
        known = nearest(function, own)
        raise _refusal(name, f"the file has no function {function!r} {clip(known, 200)}")
    if isinstance(value, nn.Module) or not callable(value):
        kind = type(value).__name__
        raise _refusal(name, f"{function!r} is a {kind}: expected a function that makes the model")
    return value  # type: ignore[no-any-return]


def _is_own(value: object, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # what is written in C may not say
        return {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}


def _check_call(name: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that a function does not take, and a call without those that it needs."""
    parameters = _parameters(function)
    kinds = {parameter.kind for parameter in parameters.values()}
    for key in arguments:
        if key not in parameters and inspect.Parameter.VAR_KEYWORD not in kinds:
            known = nearest(key, parameters) if parameters else " (it takes none)"
            raise _refusal(name, f"the function takes no argument {key!r}{known}")
    try:
        inspect.Signature(list(parameters.values())).bind(**arguments)
    except TypeError as error:
        raise _refusal(name, f"{one_line(error)}: give it as a keyword argument") from error


def _module(name: str) -> ModuleType:
    """The module of a file. One that is imported already is taken again, until the file changes;
    so classes in it stay the same, and what was pickled is found by its name."""
    place = _place(name)
    try:
        source = place.read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or one_line(error)
        raise _refusal(name, f"{clip(repr(str(place)), 200)}: {why}") from error
    digest = hashlib.sha256(os.fsencode(place) + b"\0" + source).hexdigest()[:12]
    stem = re.sub(r"\W", "_", place.stem, flags=re.ASCII)[:60]
    unique = f"{stem}_{digest}"
    if unique not in sys.modules:
        try:
            _run(unique, place, source)
        # What a user's own code raises, here too.
        except (Exception, SystemExit) as error:
            raise _refusal(name, f"the file fails to import: {_words(error, place)}") from error
    return sys.modules[unique]


def _run(unique: str, place: Path, source: bytes) -> None:
    """Import a file under a name; nothing is left of a file that fails."""
    loader = SourceFileLoader(unique, str(place))
    spec = importlib.util.spec_from_file_location(unique, place, loader=loader)
    assert spec is not None  # a loader is given
    module = sys.modules[unique] = importlib.util.module_from_spec(spec)
    try:
        with _reachable(place):
            exec(loader.source_to_code(source, str(place)), vars(module))
    except BaseException:
        sys.modules.pop(unique, None)
        raise


@contextlib.contextmanager
def _reachable(place: Path) -> Iterator[None]:
    """Within it, imports look first into the directory of a file, as they do where Python runs it;
    afterwards last: what the file imports late is found, and takes the place of nothing."""
    directory = str(place.resolve().parent)
    REACHED.add(directory)
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the file has set another path
            sys.path.remove(directory)
        if directory not in sys.path:
            sys.path.append(directory)


SOURCE = File()
