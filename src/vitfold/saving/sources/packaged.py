"""Models that come with vitfold: saved models in directories of the package."""

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from vitfold.saving import fields, upgrade
from vitfold.saving.sources.base import Source
from vitfold.saving.sources.timm import SOURCE as TIMM

NAME = upgrade.PACKAGED

MODELS = ("digits",)
"""Their names, and those of their directories."""


def directory(name: str) -> Path:
    """The directory of the model of that name."""
    return Path(str(resources.files("vitfold").joinpath("assets", name)))


@cache
def plan(name: str) -> dict[str, Any]:
    """The plan of the model of that name, which is one of timm's."""
    text = directory(name).joinpath(fields.FILE).read_text(encoding="utf-8")
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def dataset(name: str) -> str:
    """The dataset for the model of that name."""
    return str(plan(name)["model"]["dataset"])


class Packaged(Source):
    """Names of models that come with vitfold."""

    def identify(self, model: nn.Module) -> str | None:
        """The name of a model that is built as one of them, and says so by the tag of its
        weights."""
        tag = (getattr(model, "pretrained_cfg", None) or {}).get("tag")
        if tag not in MODELS:
            return None
        known = plan(tag)["model"]
        arguments = json.loads(json.dumps(TIMM.arguments(model), default=str))
        alike = (TIMM.identify(model), arguments) == (known["name"], known["arguments"])
        return str(tag) if alike else None

    def arguments(self, _: nn.Module) -> dict[str, Any]:
        """No arguments: a name is enough."""
        return {}

    def check(self, name: object, arguments: object) -> None:
        """Refuse unknown names, and any arguments."""
        fields.choice("model.name", name, MODELS)
        fields.record("model.arguments", arguments, ())

    def build(self, name: str, _arguments: dict[str, Any], pretrained: bool) -> nn.Module:
        """The model; with the packaged weights when it is pretrained."""
        saved = plan(name)
        record = saved["model"]
        model = TIMM.build(record["name"], record["arguments"], False)
        if pretrained:
            stored = load_file(directory(name) / saved["weights"]["file"])
            model.load_state_dict({key: tensor.float() for key, tensor in stored.items()})
        return model


SOURCE = Packaged()
