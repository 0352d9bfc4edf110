"""Which patches stay alone, merge or go around a block, for all images alike. Knows no model.

Scores of patches in, groups out: the slot of every patch in its block, -1 where it goes around it.
"""

import bisect
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

Scores = Sequence[Sequence[float]]

Groups = tuple[int, ...]

SCOPES = ("global", "block")

GROUPINGS = ("runs", "centers")

AROUND = -1

DAMPING = 0.015
"""How much less the scores of each next block of a model count."""


def groups(
    scores: Scores,
    blocks: Sequence[int],
    keep: float,
    prune: float,
    scope: str = "global",
    grouping: str = "runs",
    columns: int = 1,
) -> tuple[Groups, ...]:
    """The groups of patches for every block that is compressed.

    scores: of the patches in each of them.
    blocks: their numbers in the model.
    keep: the share of patches with the highest scores, which stay alone.
    prune: the share with the lowest, which go around.
    scope: whether those are shares of all blocks together (`global`), or of each (`block`).
    grouping: what merges: all between two that stay (`runs`), or each with the nearer of the two
        along its row of the grid (`centers`).
    columns: of that grid.
    """
    rows = [_comparable(row, block) for row, block in zip(scores, blocks, strict=True)]
    together = [rows] if scope == "global" else [[row] for row in rows]
    fates = [fate for some in together for fate in _fates(some, keep, prune)]
    label = _run if grouping == "runs" else _nearest
    return tuple(
        _numbered([label(fate, patch, columns) for patch in range(fate.patches)]) for fate in fates
    )


def _comparable(scores: Sequence[float], block: int) -> list[float]:
    """Scores of length one, a little less in deeper blocks."""
    length = math.sqrt(math.fsum(score * score for score in scores)) or 1.0
    return [score / length * (1 - DAMPING * block) for score in scores]


@dataclass(frozen=True)
class _Fate:
    """What becomes of the patches of a block: some stay alone, some go around, the rest merges.

    alone: which, in their order.
    """

    patches: int
    alone: tuple[int, ...]
    around: frozenset[int]

    def before(self, patch: int) -> int | None:
        """The last one up to this patch that stays alone."""
        number = bisect.bisect_right(self.alone, patch)
        return self.alone[number - 1] if number else None

    def after(self, patch: int) -> int | None:
        """The first one from this patch on that stays alone."""
        number = bisect.bisect_left(self.alone, patch)
        return self.alone[number] if number < len(self.alone) else None


def _fates(rows: list[list[float]], keep: float, prune: float) -> list[_Fate]:
    """Every block keeps at least one patch from going around."""
    places = [(row, patch) for row, scores in enumerate(rows) for patch in range(len(scores))]
    order = sorted(places, key=lambda place: (-rows[place[0]][place[1]], place))
    stay = round(keep * len(order))
    leave = max(len(order) - round(prune * len(order)), stay)
    alone: list[list[int]] = [[] for _ in rows]
    around: list[list[int]] = [[] for _ in rows]
    for row, patch in order[:stay]:
        alone[row].append(patch)
    for row, patch in order[leave:]:
        around[row].append(patch)
    return [
        # What comes first among those that go around has the highest score.
        _Fate(len(scores), tuple(sorted(stays)), frozenset(goes[len(goes) == len(scores) :]))
        for scores, stays, goes in zip(rows, alone, around, strict=True)
    ]


def _run(fate: _Fate, patch: int, _: int) -> Hashable:
    """What merges has the same label."""
    if patch in fate.around:
        return None
    before = fate.before(patch)
    return ("alone", patch) if before == patch else ("after", before)


def _nearest(fate: _Fate, patch: int, columns: int) -> Hashable:
    """The nearer patch of the row that stays alone, the earlier one of two; without one, the row
    merges."""
    if patch in fate.around:
        return None
    row = patch // columns
    ends = [p for p in (fate.before(patch), fate.after(patch)) if p is not None]
    near = [p for p in ends if p // columns == row]
    return min(near, key=lambda p: abs(p - patch)) if near else ("row", row)


def _numbered(labels: Sequence[Hashable]) -> Groups:
    """Labels as slots, in the order in which they come; those without one are -1."""
    slots: dict[Hashable, int] = {}
    for label in labels:
        if label is not None:
            slots.setdefault(label, len(slots))
    return tuple(AROUND if label is None else slots[label] for label in labels)
