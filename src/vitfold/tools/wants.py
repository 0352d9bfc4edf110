"""How a model wants its images: size, interpolation, mean, deviation, crop."""

from typing import Any

import timm.data
from torch import nn

from vitfold.folding.families import find


def data_config(model: nn.Module) -> dict[str, Any]:
    """timm's data config of the model: input_size, interpolation, mean, std, crop_pct, ..."""
    family = find(model)
    stated = family.preprocessing()
    config: dict[str, Any] = timm.data.resolve_data_config(stated, model=family.trunk)
    channels = {name: tuple(config[name])[: family.size[0]] for name in ("mean", "std")}
    return config | channels | {"input_size": family.size}
