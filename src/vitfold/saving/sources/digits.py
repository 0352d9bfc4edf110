"""The model that comes with vitfold."""

from typing import Any

import torch
from timm.models import VisionTransformer
from torch import nn

from vitfold.saving import fields
from vitfold.saving.sources.source import Source

NAME = "digits"


def identify(model: nn.Module) -> str | None:
    """Its name, for a model that is built in just the same way."""
    if type(model) is not VisionTransformer or hasattr(model, "pretrained_cfg"):
        return None
    with torch.device("meta"):
        blank = build(NAME, {}, pretrained=False)
    return NAME if _traits(model) == _traits(blank) else None


def _traits(model: Any) -> tuple[object, ...]:
    return repr(model), model.global_pool, model.blocks[0].attn.num_heads, model.pos_embed.shape


def arguments(_: nn.Module) -> dict[str, Any]:
    """None are needed."""
    return {}


def check(name: object, given: object) -> None:
    """Refuse another name, and arguments."""
    fields.choice("model.name", name, (NAME,))
    fields.record("model.arguments", given, ())


def build(_name: str, _given: dict[str, Any], pretrained: bool) -> nn.Module:
    """The model; trained when it is pretrained."""
    from vitfold.data.digits import create_digits

    model: nn.Module = create_digits(pretrained)
    return model


SOURCE = Source(identify, arguments, check, build)
