"""What a plan says, and its one way to JSON and back."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import torch

from vitfold.errors import MethodError, PlanError
from vitfold.methods import Base
from vitfold.methods.base import from_json
from vitfold.saving import fields
from vitfold.saving.sources import OTHER, SOURCES

SCHEMA = 1

LIMIT = 2**20
"""The most bytes that a plan may have."""

DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16", "float64")}

DEEPEST = 512
WIDEST = 2**16
LONGEST = 2**20

PACKAGES = ("vitfold", "torch", "timm", "transformers")

_FILE_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}\.safetensors"


@dataclass(frozen=True)
class Model:
    """The model that a plan was made for.

    source: where models of that name come from; `other` is no such place.
    arguments: what the source needs besides the name.
    depth, width, prefix: of the trunk: its blocks, its channels, its tokens that are no patches.
    dtype: of its weights.
    buffers: the dtypes of what it computes when it is made, in the order of its modules.
    fingerprint: of its weights, as `weights.fingerprint` takes it.
    """

    source: str
    name: str
    arguments: dict[str, Any]
    depth: int
    width: int
    prefix: int
    dtype: str
    buffers: list[str]
    fingerprint: str


@dataclass(frozen=True)
class Weights:
    """A file of weights beside the plan.

    backbone: whether the model's own are in it.
    """

    file: str
    backbone: bool


@dataclass(frozen=True)
class Plan:
    """A method on a model, resolved.

    schedule: how many tokens each block is asked to remove.
    versions: of the libraries that it was saved with, for people to read.
    """

    model: Model
    method: Base
    schedule: tuple[int, ...]
    weights: Weights | None
    versions: dict[str, str]


def encode(plan: Plan) -> bytes:
    """The plan as JSON: the same bytes for the same plan, and never what `decode` refuses."""
    data = {
        "schema": SCHEMA,
        "model": dataclasses.asdict(plan.model),
        "method": plan.method.to_json(),
        "schedule": list(plan.schedule),
        "weights": plan.weights and dataclasses.asdict(plan.weights),
        "versions": plan.versions,
    }
    encoded = (json.dumps(data, indent=2, allow_nan=False) + "\n").encode()
    if decode(encoded) != plan:
        raise PlanError(f"{fields.clip(plan.method)} does not come back from JSON as it went in")
    return encoded


def decode(data: bytes) -> Plan:
    """The plan in JSON, or an error that names the field that is wrong."""
    if len(data) > LIMIT:
        raise PlanError(f"{fields.FILE}: {len(data)} bytes: expected at most {LIMIT}")
    value = fields.parse(data)
    _check_schema(value)
    given = fields.record("", value, ("schema", *Plan.__dataclass_fields__))
    model = _model(given["model"])
    return Plan(
        model,
        _method(given["method"]),
        _schedule(given["schedule"], model.depth),
        _weights(given["weights"]),
        _versions(given["versions"]),
    )


def _check_schema(value: object) -> None:
    schema = value.get("schema", SCHEMA) if isinstance(value, dict) else SCHEMA
    if isinstance(schema, bool) or schema != SCHEMA or not isinstance(schema, int):
        raise fields.refusal("schema", schema, f"{SCHEMA}, the one that this vitfold reads")


def _model(value: object) -> Model:
    given = fields.record("model", value, Model.__dataclass_fields__)
    source = fields.choice("model.source", given["source"], (*SOURCES, OTHER))
    if source == OTHER:
        fields.text("model.name", given["name"], r"[\w.]{1,200}", "the name of a class")
        fields.record("model.arguments", given["arguments"], ())
    else:
        SOURCES[source].check(given["name"], given["arguments"])
    fields.integer("model.depth", given["depth"], 1, DEEPEST)
    fields.integer("model.width", given["width"], 1, WIDEST)
    fields.integer("model.prefix", given["prefix"], 0, WIDEST)
    fields.choice("model.dtype", given["dtype"], DTYPES)
    for index, dtype in enumerate(fields.items("model.buffers", given["buffers"], 0, LONGEST)):
        fields.choice(f"model.buffers[{index}]", dtype, DTYPES)
    fields.text("model.fingerprint", given["fingerprint"], "[0-9a-f]{64}", "64 hex digits")
    return Model(**given)


def _method(value: object) -> Base:
    try:
        return from_json(value)
    except MethodError as error:
        raise PlanError(f"{fields.FILE}: method: {fields.clip(error)}") from None


def _schedule(value: object, depth: int) -> tuple[int, ...]:
    numbers = fields.items("schedule", value, 0, DEEPEST)
    if len(numbers) != depth:
        raise PlanError(
            f"{fields.FILE}: schedule has {len(numbers)} numbers: expected model.depth={depth}"
        )
    return tuple(
        fields.integer(f"schedule[{block}]", r, 0, LONGEST) for block, r in enumerate(numbers)
    )


def _weights(value: object) -> Weights | None:
    if value is None:
        return None
    given = fields.record("weights", value, Weights.__dataclass_fields__)
    expected = "a plain file name such as weights.safetensors, beside the plan"
    fields.text("weights.file", given["file"], _FILE_NAME, expected)
    fields.switch("weights.backbone", given["backbone"])
    return Weights(**given)


def _versions(value: object) -> dict[str, str]:
    def check(path: str, version: object) -> None:
        fields.text(path, version, r"[\w.+-]{1,64}", "a version")

    return fields.options("versions", value, dict.fromkeys(PACKAGES, check))
