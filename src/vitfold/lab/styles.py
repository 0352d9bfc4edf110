"""How every method is drawn: the same colour, marker and line in every plot."""

import zlib
from dataclasses import dataclass

DENSE_COLOUR = "black"

AT_RANDOM, SMALLER_IMAGES = "baseline: dropping at random", "baseline: smaller images"

BASELINES = (AT_RANDOM, SMALLER_IMAGES)
"""What methods are compared with, and none itself."""

# Okabe and Ito's, which differ for the colour-blind too, and some between them.
COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8B6914", "#7B3FA0",
    "#B22222", "#4D7C0F", "#00868B", "#E75480", "#5F9E3A", "#34495E", "#A0A000", "#1F9D8A",
    "#C0844B", "#5B6ABF", "#9C2C77", "#6E6E3A",
)  # fmt: skip
MARKERS = "os^DvPX<>phd*8"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1)))

GREY, BARE = "#8A8A8A", "x+"
"""Of baselines."""

Dashes = str | tuple[int, tuple[int, ...]]

ORDER = (
    "tome", "dfe", "lgtm", "drop", "evit", "ward", "wardcut", "ltmp", "mergedrop", "prune-merge",
    "dynamicvit", "avit", "pitome", "tome-around", "mctf", "diffrate", "runlength",
    "fisher", "fishercut",
)  # fmt: skip
"""Ours by hand, so that another method of ours does not change their colours."""


@dataclass(frozen=True)
class Style:
    """How one method is drawn."""

    colour: str
    marker: str
    line: Dashes


def style(name: str) -> Style:
    """The style of a method, by its name alone, whatever else is in the plot.

    name: of a method, or of a candidate that begins with it, as `ltmp r=3`.
    """
    if name == "dense":
        return Style(DENSE_COLOUR, "*", "-")
    if name in BASELINES:
        number = BASELINES.index(name)
        return Style(GREY, BARE[number], LINES[1 + number])
    number = _number(name)
    marker = MARKERS[number % len(MARKERS)]
    return Style(COLOURS[number % len(COLOURS)], marker, LINES[number % len(LINES)])


def _number(name: str) -> int:
    """A place in the order: that of a method, or for what is not ours one that its name gives."""
    for known in (name, name.split(" ")[0]):
        if known in ORDER:
            return ORDER.index(known)
    return len(ORDER) + zlib.crc32(name.encode()) % (len(COLOURS) - len(ORDER))
