"""Segmenters: an encoder of timm's, and a decoder by name."""

from typing import Any

from torch import nn

from vitfold.saving import fields
from vitfold.saving.sources import timm
from vitfold.saving.sources.source import Source
from vitfold.segment.decoders import DECODERS
from vitfold.segment.segmenter import MOST_CLASSES, Segmenter

NAME = "segmenter"


def identify(model: nn.Module) -> str | None:
    """The name of its encoder."""
    return timm.identify(model.encoder) if type(model) is Segmenter else None


def arguments(model: Any) -> dict[str, Any] | None:
    """Its decoder, and what makes its encoder."""
    encoder = timm.arguments(model.encoder)
    return {"decoder": model.kind, "classes": model.classes, "encoder": encoder}


def check(name: object, given: object) -> None:
    """Refuse what makes no encoder, and decoders that there are not."""
    values = fields.record("model.arguments", given, ("decoder", "classes", "encoder"))
    fields.choice("model.arguments.decoder", values["decoder"], DECODERS)
    fields.integer("model.arguments.classes", values["classes"], 2, MOST_CLASSES)
    timm.check(name, values["encoder"])


def build(name: str, given: dict[str, Any], pretrained: bool) -> nn.Module:
    """The segmenter; nobody publishes weights of one."""
    if pretrained:
        raise LookupError("a segmenter comes without pretrained weights")
    return Segmenter(timm.build(name, given["encoder"], False), given["classes"], given["decoder"])


SOURCE = Source(identify, arguments, check, build)
