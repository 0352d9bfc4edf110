"""Reading JSON strictly: whatever is refused is named by field, value and what was expected."""

import difflib
import json
import math
import re
import reprlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vitfold.errors import PlanError, nearest

FILE = "plan.json"

LIMIT = 2**19
"""The most characters of JSON that the arguments of a model may have."""

DEEPEST = 12
"""How many objects and lists may lie in each other."""

LARGEST = 2**53
"""The largest int that every JSON reader keeps exact."""

Check = Callable[[str, object], object]
"""Refuses the value at a path; what it returns is not looked at."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


def refusal(path: str, value: object, expected: str) -> PlanError:
    """The error for a value that cannot be used."""
    line = f"{clip(path)}={_short.repr(value)}: expected {clip(expected)}"
    return PlanError(f"{FILE}: {line}")


def clip(text: object, most: int = 300) -> str:
    """The text on one line, and no longer than a line should be."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else line[: most - 3] + "..."


def parse(data: bytes) -> object:
    """The JSON value in `data`: no duplicate keys, no NaN, nothing deep and nothing huge."""
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_unique, parse_constant=_number, parse_float=_number
        )
    except RecursionError:
        raise PlanError(f"{FILE}: nested more than {DEEPEST} deep") from None
    except PlanError:
        raise
    except ValueError as error:
        raise PlanError(f"{FILE}: not JSON: {clip(error)}") from None
    _bound(value)
    return value


def plain(arguments: dict[str, Any] | None) -> dict[str, Any] | None:
    """The arguments as JSON gives them back; None where it cannot hold them."""
    try:
        text = json.dumps(arguments, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
    again: dict[str, Any] | None = json.loads(text)
    return again if len(text) <= LIMIT else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in values if keys.count(key) > 1)
        raise PlanError(f"{FILE}: the key {_short.repr(twice)} is there twice")
    return values


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise PlanError(f"{FILE}: {clip(text, 60)}: expected a finite number")
    return value


def _bound(value: object) -> None:
    """Refuse deep nesting and huge ints, without recursion."""
    waiting: list[tuple[str, object, int]] = [("", value, 0)]
    while waiting:
        path, item, level = waiting.pop()
        if level > DEEPEST:
            raise PlanError(f"{FILE}: {clip(path)}: nested more than {DEEPEST} deep")
        if isinstance(item, int) and abs(item) > LARGEST:
            raise refusal(path, item, f"a number from -{LARGEST} to {LARGEST}")
        if isinstance(item, dict):
            waiting += [(join(path, key), inner, level + 1) for key, inner in item.items()]
        elif isinstance(item, list):
            waiting += [(f"{path}[{i}]", inner, level + 1) for i, inner in enumerate(item)]


def version(value: object, newest: int) -> int | None:
    """The schema that an object says it has; None where it says nothing."""
    if not isinstance(value, dict) or "schema" not in value:
        return None
    schema = value["schema"]
    if isinstance(schema, bool) or not isinstance(schema, int) or not 1 <= schema <= newest:
        raise refusal("schema", schema, f"1 to {newest}, those that this vitfold reads")
    return schema


def join(path: str, key: str) -> str:
    """The path of a key in the object at `path`."""
    key = key if key.isidentifier() else _short.repr(key)
    return f"{path}.{key}" if path else key


def record(path: str, value: object, keys: Collection[str]) -> dict[str, Any]:
    """An object with exactly these keys; any values."""
    entries = options(path, value, dict.fromkeys(keys, anything))
    for key in keys:
        if key not in entries:
            raise PlanError(f"{FILE}: {join(path, key)} is missing")
    return entries


def options(path: str, value: object, checks: Mapping[str, Check]) -> dict[str, Any]:
    """An object with some of the keys in `checks`; every value passes its check."""
    if not isinstance(value, dict):
        keys = f"an object with {', '.join(checks)}" if checks else "an empty object"
        raise refusal(path or "the plan", value, keys)
    for key, inner in value.items():
        if key not in checks:
            raise PlanError(f"{FILE}: {clip(join(path, key))} is unknown{_hint(key, checks)}")
        checks[key](join(path, key), inner)
    return value


def _hint(key: str, known: Collection[str]) -> str:
    """The known key that may have been meant; empty where that would be a long list."""
    hint = nearest(key[:100], known) if known else ""
    return hint if len(hint) <= 200 else ""


def anything(path: str, value: object) -> None:
    """Accept any value."""


def integer(path: str, value: object, least: int, most: int) -> int:
    """An int in a range; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise refusal(path, value, f"an int from {least} to {most}")
    return value


def number(path: str, value: object, least: float, most: float) -> float:
    """An int or a float in a range; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise refusal(path, value, f"a number from {least} to {most}")
    return value


def nothing_or(check: Callable[[str, object], object], path: str, value: object) -> None:
    """Null, or what passes a check."""
    if value is not None:
        check(path, value)


def switch(path: str, value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise refusal(path, value, "true or false")
    return value


def choice(path: str, value: object, known: Collection[str]) -> str:
    """One of the words that are known."""
    if not isinstance(value, str) or value not in known:
        raise refusal(path, value, f"one of {_told(str(value), known)}")
    return value


MANY = 40
"""So many words are not told one by one."""


def _told(value: str, known: Collection[str]) -> str:
    """Words, of many the nearest."""
    if len(known) <= MANY:
        return ", ".join(known)
    near = difflib.get_close_matches(value, known) or [*known][:3]
    return f"{len(known)} names, such as {', '.join(near)}"


def text(path: str, value: object, pattern: str, expected: str) -> str:
    """A string that matches a pattern as a whole."""
    if not isinstance(value, str) or not matches(value, pattern):
        raise refusal(path, value, expected)
    return value


def matches(value: str, pattern: str) -> bool:
    """Whether a pattern matches the whole of a string, in ASCII."""
    return re.fullmatch(pattern, value, re.ASCII) is not None


def items(path: str, value: object, least: int, most: int) -> list[Any]:
    """A list of a length in a range."""
    if not isinstance(value, list) or not least <= len(value) <= most:
        long = f"{least}" if least == most else f"{least} to {most}"
        raise refusal(path, value, f"a list of {long}")
    return value
