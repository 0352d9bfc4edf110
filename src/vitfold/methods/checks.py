"""Checks of the options of methods; errors name the option."""

from collections.abc import Sequence

from vitfold.errors import MethodError, nearest
from vitfold.tokens.cues import CUES


def check_cue(cue: object) -> None:
    """Refuse what is not a cue."""
    if cue not in CUES:
        raise MethodError(f"unknown cue {cue!r}{nearest(str(cue), CUES)}")


def check_switch(name: str, value: object) -> None:
    """Refuse what is not a bool."""
    if not isinstance(value, bool):
        raise MethodError(f"{name}={value!r}: expected True or False")


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Refuse what is none of the known words."""
    if value not in known:
        raise MethodError(f"{name}={value!r}: expected {' or '.join(known)}")


def whole_numbers(name: str, values: object) -> tuple[int, ...] | None:
    """A list of ints from zero up as a tuple, which nobody changes later; None stays None."""
    if values is None:
        return None
    if not isinstance(values, list | tuple | range):
        raise MethodError(f"{name}={values!r}: expected a list of ints")
    for index, value in enumerate(values):
        check_whole(f"{name}[{index}]", value, least=0)
    return tuple(values)


def rising(name: str, values: object) -> tuple[int, ...] | None:
    """A list of at least one int, each above the one before, as a tuple; None stays None."""
    numbers = whole_numbers(name, values)
    if numbers is not None and (not numbers or sorted(set(numbers)) != list(numbers)):
        raise MethodError(f"{name}={list(numbers)}: expected rising numbers")
    return numbers


def check_blocks(blocks: Sequence[int] | None, depth: int) -> None:
    """Refuse blocks that a model does not have."""
    if blocks and max(blocks) >= depth:
        raise MethodError(f"blocks={list(blocks)}: the model has {depth} blocks, numbered from 0")


def check_number(name: str, value: object, least: float, most: float) -> None:
    """Refuse what is not a number in a range; a bool is none."""
    if not _is_number(value) or not least <= value <= most:  # type: ignore[operator]
        raise MethodError(f"{name}={value!r}: expected a number from {least:g} to {most:g}")


def check_skip(skip: object) -> None:
    """Refuse what is not a number of blocks."""
    check_whole("skip", skip, least=0)


def check_whole(name: str, value: object, least: int) -> None:
    """Refuse what is not an int of at least `least`; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise MethodError(f"{name}={value!r}: expected an int, got {type(value).__name__}")
    if value < least:
        raise MethodError(f"{name}={value!r}: expected {least} or more")


def plain(value: object) -> object:
    """The value in Python's own numbers and lists, where it comes from numpy or torch; lists are
    copied."""
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value.tolist() if hasattr(value, "tolist") else value


def check_reduction(r: object, name: str = "r") -> None:
    """Refuse what is no form of `r`, or of an option like it."""
    if isinstance(r, tuple):
        _check_ramp(r, name)
    elif isinstance(r, list):
        for block, value in enumerate(r):
            check_whole(f"{name}[{block}]", value, least=0)
    else:
        check_whole(name, r, least=0)


def _check_ramp(r: tuple[object, ...], name: str) -> None:
    if len(r) != 2:
        raise MethodError(
            f"{name}={r!r}: expected ({name}, inflection); a number per block goes in a list"
        )
    check_whole(name, r[0], least=0)
    check_inflection(r[1])


def check_inflection(inflection: object) -> None:
    """Refuse what is no slope of a ramp: a number from -1 to 1."""
    check_number("inflection", inflection, -1, 1)


def check_share(flops: object) -> None:
    """Refuse what is not a share of the dense FLOPs."""
    if not _is_number(flops) or not 0 < flops <= 1:  # type: ignore[operator]
        raise MethodError(f"flops={flops!r}: expected a share of the dense FLOPs in (0, 1]")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
