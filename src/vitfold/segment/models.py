"""Segmenters by name, and how they are saved: an encoder of timm's, and a decoder by name."""

from typing import Any

from torch import nn

from vitfold.errors import UnsupportedModel
from vitfold.saving import fields, sources
from vitfold.saving.models import HUB, create_model, dataset_of, is_folded, origin_of
from vitfold.saving.sources import file
from vitfold.saving.sources.base import Source
from vitfold.saving.sources.timm import SOURCE as TIMM
from vitfold.segment.decoders import DECODERS
from vitfold.segment.segmenter import MOST_CLASSES, Segmenter

NAME = "segmenter"
"""What the source is called in plans."""


def create_segmenter(
    encoder: str, classes: int, decoder: str = "mask", *, pretrained: bool = False, **kwargs: Any
) -> Segmenter:
    """A segmenter around the encoder of that name, with a decoder that is not trained yet.

    encoder: a timm model, or a directory of one with its weights; the head of a classifier goes.
    kwargs: for the encoder; `img_size` is the window.
    """
    if file.parts(encoder) is not None:
        raise UnsupportedModel(
            f"{fields.clip(encoder, 100)} cannot be an encoder: let the function return the whole "
            "segmenter, vitfold.segment.Segmenter(encoder, classes)"
        )
    if encoder.startswith(HUB) or dataset_of(encoder) is not None or is_folded(encoder):
        raise UnsupportedModel(
            f"{fields.clip(encoder, 100)} cannot be an encoder: give a timm model, or the "
            "directory of one that is not folded"
        )
    arguments = {"num_classes": 0, **kwargs}
    return Segmenter(create_model(encoder, pretrained=pretrained, **arguments), classes, decoder)


def saved_classes(name: str) -> int | None:
    """How many classes the segmenter in a directory has; None where there is none."""
    origin = origin_of(name)
    return (
        int(origin.arguments["classes"]) if origin is not None and origin.source == NAME else None
    )


class Segmenters(Source):
    """An encoder of timm's, and a decoder by name."""

    def identify(self, model: nn.Module) -> str | None:
        """The name of a segmenter's encoder."""
        return TIMM.identify(model.encoder) if type(model) is Segmenter else None

    def arguments(self, model: Any) -> dict[str, Any] | None:
        """A segmenter's decoder and classes, and the arguments of its encoder."""
        if file.SOURCE.identify(model.encoder) is not None:
            return None
        encoder = TIMM.arguments(model.encoder)
        return {"decoder": model.kind, "classes": model.classes, "encoder": encoder}

    def check(self, name: object, arguments: object) -> None:
        """Refuse arguments that build no encoder, and unknown decoders."""
        values = fields.record("model.arguments", arguments, ("decoder", "classes", "encoder"))
        fields.choice("model.arguments.decoder", values["decoder"], DECODERS)
        fields.integer("model.arguments.classes", values["classes"], 2, MOST_CLASSES)
        TIMM.check(name, values["encoder"])

    def build(self, name: str, arguments: dict[str, Any], pretrained: bool) -> nn.Module:
        """The segmenter with random weights; nobody publishes pretrained ones."""
        if pretrained:
            raise LookupError("a segmenter comes without pretrained weights")
        return Segmenter(
            TIMM.build(name, arguments["encoder"], False),
            arguments["classes"],
            arguments["decoder"],
        )


sources.register(NAME, Segmenters())
