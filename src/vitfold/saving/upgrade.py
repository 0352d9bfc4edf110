"""Plans of earlier schemas, turned into the current one."""

from typing import Any

SCHEMA = 2

EMBEDDED = "digits"
"""The name, and in schema 1 the source, of the model that comes with vitfold."""

PACKAGED = "packaged"

_TRUNK = ("depth", "width", "prefix")


def from_first(value: dict[str, Any]) -> dict[str, Any]:
    """The fields of a plan of schema 1, as those of one of schema 2; nothing is checked."""
    model, weights = value.get("model"), value.get("weights")
    new = value | {"schema": SCHEMA}
    if isinstance(model, dict):
        new["model"] = _model(model)
    if isinstance(weights, dict):
        new["weights"] = weights | {"dtype": None}
    return new


def _model(model: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in model.items() if key not in _TRUNK}
    trunk = {key: model[key] for key in _TRUNK if key in model}
    embedded = model.get("source") == EMBEDDED
    source = {"source": PACKAGED} if embedded else {}
    return rest | source | {
        "trunk": trunk,
        "dataset": EMBEDDED if embedded else None,
        "values": None,
    }  # fmt: skip
