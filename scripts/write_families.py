"""Writes docs/families.md: what can be folded and what is refused, from the libraries."""

from importlib.metadata import version
from pathlib import Path

from vitfold.folding.families import families
from vitfold.folding.families.table import Group

PAGE = Path(__file__).parents[1] / "docs" / "families.md"

HEAD = """\
# What can be folded

Written by `scripts/write_families.py` from timm {timm} and transformers {transformers};
`vitfold.families()` tells the same of the versions that are installed.

What vitfold needs is one sequence of tokens, all of which attend to all others, from the first
block to the last; or a grid of them that stays as it is, and attends in windows or over all
([windowed encoders](windowed-encoders.md)). Anything else is refused by `UnsupportedModel`, with
its class and the reason.
A model that holds one of these trunks (a head, a detector, a vision-language model) folds through
it; some language models can then [read fewer visual tokens](vision-language.md).
"""

OTHERS = """\
Trunks of packages that vitfold does not depend on. Any other is described in a class of some 40
lines: [adding a family](adding-a-family.md).
"""


def page() -> str:
    """The page as it should be."""
    message = families()
    head = HEAD.format(timm=version("timm"), transformers=version("transformers"))
    parts = [head]
    for library, names in (("timm", "Registered names"), ("transformers", "Classes")):
        folded = [f for f in message.folded if f.library == library]
        refused = [f for f in message.refused if f.library == library]
        parts += [
            f"## {library}: folded ({count(folded)})\n",
            table(("Module", "Trunk", names), [folds(family) for family in folded]),
            f"## {library}: refused ({count(refused)})\n",
            table(("Module", names, "Why"), [refuses(family) for family in refused]),
        ]
    others = [f for f in message.folded if f.library not in ("timm", "transformers")]
    rows: list[tuple[str, ...]] = [(f"`{f.library}.{f.module}`", f"`{f.kind}`") for f in others]
    return "\n".join([*parts, "## Others: folded\n", OTHERS, table(("Module", "Trunk"), rows)])


def count(families: list[Group]) -> int:
    return sum(len(family.names) for family in families)


def folds(family: Group) -> tuple[str, ...]:
    names = str(len(family.names)) if family.library == "timm" else ", ".join(family.names)
    return f"`{family.module}`", f"`{family.kind}`", names


def refuses(family: Group) -> tuple[str, ...]:
    names = str(len(family.names)) if family.library == "timm" else ", ".join(family.names)
    return f"`{family.module}`", names, str(family.reason)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
