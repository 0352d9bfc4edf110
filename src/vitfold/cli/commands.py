"""The commands by name. The module of one is imported when that one is chosen, so that help and
version need no model library."""

import functools
import importlib
from dataclasses import dataclass
from typing import Any

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from vitfold.cli import show
from vitfold.cli.common import prepared


@dataclass(frozen=True)
class Entry:
    """A command that is not imported yet.

    help: what the list of commands says of it.
    app: whether its module has commands of its own, in an `app`.
    imports: whether it takes `--import`; None: if it takes a model or a method.
    """

    help: str
    app: bool = False
    imports: bool | None = None


COMMANDS = {
    "demo": Entry("What folding gains and costs here: speed at real size, pictures, accuracy."),
    "bench": Entry("Dense model, textbook ToMe, free-slicing bound and folded model side by side."),
    "validate": Entry("Accuracy of the folded model, and how often it agrees with the dense one."),
    "sweep": Entry("Accuracy, agreement, FLOPs and speed of every method over a range of FLOPs."),
    "report": Entry("One self-contained page: plots, token pictures, tables and hardware."),
    "analyze": Entry("Look into a model: how alike its tokens are, how sharp its minimum.", True),
    "trace": Entry("What becomes of the tokens of some images: counts and pictures."),
    "train": Entry("Train a model, dense or folded."),
    "calibrate": Entry("Find on images what a method takes from them, without training."),
    "search": Entry("Find what merges, by Prune and Merge, and save the model folded so."),
    "freeze": Entry("Give every image the mean number of tokens of a ragged model."),
    "tune": Entry("Find the fold that keeps a speed or a nearness here, by measuring."),
    "export": Entry("Write a model for ONNX Runtime, OpenVINO or torch, and verify it there."),
    "embed": Entry("Embed a corpus of images: Parquet, resumable, every image accounted for."),
    "explore": Entry("Open a page: drop a photograph, drag the budget, see what a fold does."),
    "push": Entry("Put a saved fold on the hub, with its page.", imports=False),
    "families": Entry("What can be folded with the libraries here; what is refused, and why.",
                      imports=True),
}  # fmt: skip
"""In the order in which help shows them; each is the module of its name in this package."""


class Commands(TyperGroup):
    """The group of all commands. Until one is chosen it stands for itself by name and help."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {name: _sketch(name, entry) for name, entry in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that arguments choose, imported."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS and command is self.commands[name]:
            command = self.commands[name] = load(name)
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run it; Ctrl-C is told in one line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            show.note("stopped")
            raise typer.Exit(130) from None


def _sketch(name: str, entry: Entry) -> Any:
    return TyperCommand(name, help=entry.help, rich_markup_mode="rich")


@functools.cache
def load(name: str) -> Any:
    """The command of that name, from its module."""
    entry = COMMANDS[name]
    module = importlib.import_module(f"vitfold.cli.{name}")
    app = typer.Typer(
        name=name,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    if not entry.app:
        app.command(name)(prepared(getattr(module, name), entry.imports))
        return typer.main.get_command(app)
    for info in module.app.registered_commands:
        info.callback = prepared(info.callback, entry.imports)
    group = typer.main.get_command(module.app)
    group.name = name
    return group
