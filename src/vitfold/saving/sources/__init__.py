"""Sources of models: each can name a model, and build it again by name."""

import importlib
import itertools
from typing import Any, NamedTuple

import torch
from torch import nn

from vitfold.folding.blocks.names import full_name
from vitfold.saving.fields import plain
from vitfold.saving.sources import file, hf, packaged, timm
from vitfold.saving.sources.base import Source

SOURCES: dict[str, Source] = {
    file.NAME: file.SOURCE,
    packaged.NAME: packaged.SOURCE,
    "timm": timm.SOURCE,
    "transformers": hf.SOURCE,
}
"""Sources by name; of several that know a model, it is the first's."""

ELSEWHERE = {"segmenter": "vitfold.segment.models"}
"""Modules that register a source when they are imported, which is when a plan asks for it."""

OTHER = "other"
"""The source of a model that cannot be made by name."""


class Origin(NamedTuple):
    """A source, a name in it and arguments, from which a model can be built."""

    source: str
    name: str
    arguments: dict[str, Any]


def register(name: str, source: Source) -> None:
    """Let models of a source be saved and loaded; the module that does so stands in `ELSEWHERE`."""
    SOURCES[name] = source


def names() -> tuple[str, ...]:
    """The names of all sources, whether they are imported or not."""
    return tuple(dict.fromkeys((*SOURCES, *ELSEWHERE)))


def source(name: str) -> Source:
    """The source of that name."""
    if name not in SOURCES:
        importlib.import_module(ELSEWHERE[name])
    return SOURCES[name]


def identify(model: nn.Module, *, by_hand: bool = True) -> tuple[str, str]:
    """The source of a model and its name there, as far as they are known.

    by_hand: whether a file of a user's own is a source too; otherwise a model that it made is what
        it would be without.
    """
    for source, maker in SOURCES.items():
        if (by_hand or source != file.NAME) and (name := maker.identify(model)) is not None:
            return source, name
    return OTHER, full_name(type(model))


def describe(model: nn.Module) -> Origin:
    """The origin of a model; of the source `other` where nothing builds the same again."""
    source, name = identify(model)
    if source != OTHER:
        arguments = plain(SOURCES[source].arguments(model))
        if arguments is not None and _makes(source, name, arguments, model):
            return Origin(source, name, arguments)
    return Origin(OTHER, full_name(type(model)), {})


def build(origin: Origin, *, pretrained: bool = False) -> nn.Module:
    """The model of an origin, with pretrained or random weights."""
    return source(origin.source).build(origin.name, origin.arguments, pretrained)


def sketch(origin: Origin) -> nn.Module:
    """The model of an origin on the meta device: no memory for its tensors."""
    with torch.device("meta"):
        return build(origin)


def _makes(source: str, name: str, arguments: dict[str, Any], model: nn.Module) -> bool:
    """Whether these arguments are accepted, and make a model that is built like this one, where a
    plan is enough to build it."""
    try:
        SOURCES[source].check(name, arguments)
        if not SOURCES[source].builds:
            return True
        blank = sketch(Origin(source, name, arguments))
    # Whatever a constructor raises, the answer is the same.
    except Exception:
        return False
    again = plain(SOURCES[source].arguments(blank))
    return again == arguments and repr(blank) == repr(model) and _shapes(blank) == _shapes(model)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    named = itertools.chain(model.named_parameters(), model.named_buffers())
    return {name: tensor.shape for name, tensor in named}
