"""The schema of plan.json: its fields, and how they are written and read."""

import dataclasses
import functools
import json
from dataclasses import dataclass
from typing import Any

import torch

from vitfold.errors import MethodError, PlanError
from vitfold.folding.calls import OUTS, Out
from vitfold.methods import Base
from vitfold.methods.registry import from_json
from vitfold.saving import fields, sources, upgrade
from vitfold.saving.upgrade import SCHEMA

LIMIT = 2**20
"""The most bytes that a plan may have."""

DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16", "float64")}

DEEPEST = 512
WIDEST = 2**16
LONGEST = 2**20

MOST = 2**33
"""The most numbers that a model may be made of: 32 GB of them in float32."""

PACKAGES = ("vitfold", "torch", "timm", "transformers")

_FILE_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}\.safetensors"


@dataclass(frozen=True)
class Trunk:
    """The sizes of a trunk: blocks, channels, and tokens that are no patches."""

    depth: int
    width: int
    prefix: int


@dataclass(frozen=True)
class Model:
    """The model that a plan was made for.

    source: where models of that name come from; `other` is no such place, and of `file` the name is
        that of a file and of the function in it, which no plan runs.
    arguments: what the source needs besides the name.
    dataset: the images that vitfold has for it; None: those that a user gives.
    trunk: None in a model that cannot be folded.
    dtype: of its weights.
    buffers: the dtypes of what it computes when it is made, in the order of its modules.
    values: how many numbers its weights and buffers are; None in plans of schema 1.
    fingerprint: of its weights; None where they could not be read, as in quantized models.
    """

    source: str
    name: str
    arguments: dict[str, Any]
    dataset: str | None
    trunk: Trunk | None
    dtype: str
    buffers: list[str]
    values: int | None
    fingerprint: str | None


@dataclass(frozen=True)
class Weights:
    """A file of weights beside the plan.

    backbone: whether the model's own are in it.
    dtype: what they are stored in, where that is not what the model computes in.
    """

    file: str
    backbone: bool
    dtype: str | None = None


@dataclass(frozen=True)
class Plan:
    """A model, and how it is folded.

    method: None for a dense model.
    schedule: how many tokens each block is to remove; empty for a dense model.
    versions: of the libraries that it was saved with, for people to read.
    out: what a model around the trunk reads; left out where that is `restored`.
    """

    model: Model
    method: Base | None
    schedule: tuple[int, ...]
    weights: Weights | None
    versions: dict[str, str]
    out: Out = "restored"


def encode(plan: Plan) -> bytes:
    """The plan as JSON: the same bytes for the same plan, and never what `decode` refuses."""
    data = {
        "schema": SCHEMA,
        "model": dataclasses.asdict(plan.model),
        "method": plan.method and plan.method.to_json(),
        "schedule": list(plan.schedule),
        "weights": plan.weights and dataclasses.asdict(plan.weights),
        "versions": plan.versions,
    } | ({} if plan.out == "restored" else {"out": plan.out})
    encoded = (json.dumps(data, indent=2, allow_nan=False) + "\n").encode()
    if decode(encoded) != plan:
        raise PlanError(f"{fields.clip(plan.method)} does not come back from JSON as it went in")
    return encoded


def decode(data: bytes) -> Plan:
    """The plan in JSON, or an error that names the field that is wrong."""
    if len(data) > LIMIT:
        raise PlanError(f"{fields.FILE}: {len(data)} bytes: expected at most {LIMIT}")
    value = fields.parse(data)
    schema = fields.version(value, upgrade.SCHEMA)
    if isinstance(value, dict):
        value = {"out": "restored"} | value
    entries = fields.record("", value, ("schema", *Plan.__dataclass_fields__))
    if schema == 1:
        entries = upgrade.from_first(entries)
    model = _model(entries["model"])
    method = _method(entries["method"])
    if method is not None and model.trunk is None:
        raise fields.refusal("model.trunk", None, "depth, width and prefix of what is folded")
    depth = model.trunk.depth if method is not None and model.trunk is not None else 0
    schedule = _schedule(entries["schedule"], depth)
    weights = _weights(entries["weights"])
    if weights and weights.backbone and model.fingerprint is None:
        raise fields.refusal("model.fingerprint", None, "64 hex digits of the weights")
    out: Any = fields.choice("out", entries["out"], OUTS if method is not None else OUTS[:1])
    return Plan(model, method, schedule, weights, _versions(entries["versions"]), out)


def _model(value: object) -> Model:
    entries = fields.record("model", value, Model.__dataclass_fields__)
    source = fields.choice("model.source", entries["source"], (*sources.names(), sources.OTHER))
    if source == sources.OTHER:
        fields.text("model.name", entries["name"], r"[\w.]{1,200}", "the name of a class")
        fields.record("model.arguments", entries["arguments"], ())
    else:
        sources.source(source).check(entries["name"], entries["arguments"])
    word = functools.partial(fields.text, pattern=r"[a-z0-9_-]{1,64}", expected="a name, or null")
    fields.nothing_or(word, "model.dataset", entries["dataset"])
    fields.choice("model.dtype", entries["dtype"], DTYPES)
    for index, dtype in enumerate(fields.items("model.buffers", entries["buffers"], 0, LONGEST)):
        fields.choice(f"model.buffers[{index}]", dtype, DTYPES)
    count = functools.partial(fields.integer, least=0, most=MOST)
    fields.nothing_or(count, "model.values", entries["values"])
    digits = functools.partial(fields.text, pattern="[0-9a-f]{64}", expected="64 hex digits")
    fields.nothing_or(digits, "model.fingerprint", entries["fingerprint"])
    if entries["fingerprint"] is None and source != sources.OTHER:
        raise fields.refusal("model.fingerprint", None, "64 hex digits")
    return Model(**entries | {"trunk": _trunk(entries["trunk"])})


def _trunk(value: object) -> Trunk | None:
    if value is None:
        return None
    entries = fields.record("model.trunk", value, Trunk.__dataclass_fields__)
    fields.integer("model.trunk.depth", entries["depth"], 1, DEEPEST)
    fields.integer("model.trunk.width", entries["width"], 1, WIDEST)
    fields.integer("model.trunk.prefix", entries["prefix"], 0, WIDEST)
    return Trunk(**entries)


def _method(value: object) -> Base | None:
    if value is None:
        return None
    try:
        return from_json(value)
    except MethodError as error:
        raise PlanError(f"{fields.FILE}: method: {fields.clip(error)}") from None


def _schedule(value: object, depth: int) -> tuple[int, ...]:
    numbers = fields.items("schedule", value, 0, DEEPEST)
    if len(numbers) != depth:
        what = f"model.trunk.depth={depth}" if depth else "none, as there is no method"
        raise PlanError(f"{fields.FILE}: schedule has {len(numbers)} numbers: expected {what}")
    return tuple(
        fields.integer(f"schedule[{block}]", r, 0, LONGEST) for block, r in enumerate(numbers)
    )


def _weights(value: object) -> Weights | None:
    if value is None:
        return None
    entries = fields.record("weights", value, Weights.__dataclass_fields__)
    expected = "a plain file name such as weights.safetensors, beside the plan"
    fields.text("weights.file", entries["file"], _FILE_NAME, expected)
    fields.switch("weights.backbone", entries["backbone"])
    stored = functools.partial(fields.choice, known=DTYPES)
    fields.nothing_or(stored, "weights.dtype", entries["dtype"])
    return Weights(**entries)


def _versions(value: object) -> dict[str, str]:
    def check(path: str, version: object) -> None:
        fields.text(path, version, r"[\w.+-]{1,64}", "a version")

    return fields.options("versions", value, dict.fromkeys(PACKAGES, check))
