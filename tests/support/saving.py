"""Models that are saved, and how what comes back is compared with them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitfold
from support import models
from vitfold.errors import PlanError
from vitfold.folding.calls import fold_of

DEPTH = 4


def tiny(**options: Any) -> Any:
    """A model of timm's, small, by name."""
    settings = {"depth": DEPTH, "img_size": 64, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
    return models.registered("test_vit", **(settings | options))


def output(model: Any, inputs: Any = None) -> Tensor:
    with torch.no_grad():
        out = model(models.images(model) if inputs is None else inputs)
    return out if isinstance(out, Tensor) else out[0]


def same(one: nn.Module, other: nn.Module, inputs: Any = None) -> bool:
    """The same, bit for bit: outputs, state, and how it is folded."""
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    state = all(a == b and x.dtype == y.dtype and torch.equal(x, y) for (a, x), (b, y) in pairs)
    first, second = fold_of(one), fold_of(other)
    fold = (first.method, first.schedule) == (second.method, second.schedule)
    return state and fold and torch.equal(output(one, inputs), output(other, inputs))


def refused(directory: Path, *arguments: Any) -> str:
    """What the error says, on its one line."""
    with pytest.raises(PlanError) as caught:
        vitfold.load(directory, *arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def put(directory: Path, path: str, value: Any) -> None:
    """Change one value of the plan; `...` takes it out."""
    data = json.loads((directory / "plan.json").read_text())
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("/"))
    place: Any = data
    for key in parents:
        place = place[key]
    place[last] = value
    if value is ...:
        del place[last]
    (directory / "plan.json").write_text(json.dumps(data))
