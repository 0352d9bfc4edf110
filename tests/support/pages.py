"""The blocks of README.md and of the pages of docs, as a reader would run them."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    language: what stands behind its fence.
    line: the number of its first line.
    """

    page: str
    language: str
    code: str
    line: int

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def run(self, names: dict[str, Any]) -> None:
        """Execute it as Python; errors show lines of the page."""
        exec(compile("\n" * (self.line - 1) + self.code, self.page, "exec"), names)


def mkdocs(*words: object, place: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """What mkdocs makes of the site that is described in a place."""
    command = [sys.executable, "-m", "mkdocs", *map(str, words)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=place, env=quiet, capture_output=True, text=True)


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[Block]:
    """The blocks of a page, those in these languages where any are named."""
    return [block for block in _fenced(page) if not languages or block.language in languages]


def _fenced(page: str) -> Iterator[Block]:
    lines: list[str] | None = None
    for number, line in enumerate(text(page).splitlines(), 1):
        if not line.lstrip().startswith("```"):
            if lines is not None:
                lines.append(line)
        elif lines is None:
            lines, language, first = [], line.strip().removeprefix("```"), number + 1
        else:
            yield Block(page, language, "\n".join(lines) + "\n", first)
            lines = None
    if lines is not None:
        raise ValueError(f"{page}:{first}: a block without an end")


def command_lines(page: str) -> list[tuple[str, list[str]]]:
    """Where each line of the blocks for a shell stands, and its words."""
    return [
        (f"{page}:{block.line + number}", words)
        for block in blocks(page, "", "sh")
        if block.code.split()[0] not in LISTINGS
        for number, line in enumerate(block.code.splitlines())
        if (words := shlex.split(line, comments=True))
    ]


LISTINGS = {"corpus/"}
"""How blocks begin that show files and no commands."""


def inline_code(page: str) -> list[str]:
    """What stands between backticks in the prose of a page."""
    prose = re.sub(r"^\s*```.*?^\s*```", "", text(page), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", prose)


def folding_lines(page: str) -> list[str]:
    """The lines of a table that fold a model, or load what folds it, whole."""
    rows = [line for line in text(page).splitlines() if line.startswith("| ")]
    return [code for row in rows for code in re.findall(r"`(vitfold\.(?:fold|load)\([^`]*)`", row)]
