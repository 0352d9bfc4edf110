"""Names of splits: synonyms, and shares such as `train[:90%]`."""

import re

SAME = (("train", "training"), ("validation", "val", "valid", "eval", "evaluation"))
"""Names of splits that are taken for one another, as timm does."""

SPLITS = {*(name for names in SAME for name in names), "test"}

SHARE = re.compile(r"(?P<name>.+)\[(?:(?P<low>\d{1,3})%)?:(?:(?P<high>\d{1,3})%)?\]")
"""The name of a split with the share of it that is meant."""


def also(split: str) -> tuple[str, ...]:
    """The name of a split and its synonyms."""
    return (split, *next((names for names in SAME if split in names), ()))


def share_of(split: str) -> tuple[str, tuple[int, int] | None]:
    """The name of a split, and the percentages from which and to which it goes; None for the
    whole."""
    match = SHARE.fullmatch(split)
    if match is None:
        return split, None
    return match["name"], (int(match["low"] or 0), int(match["high"] or 100))
