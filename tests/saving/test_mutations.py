"""Plans and weights with random mistakes load as they are, or are refused."""

import copy
import json
import random
from pathlib import Path
from typing import Any

from support import models, small
from support.file import own_file
from support.saving import refused, tiny

import vitfold
from vitfold.errors import PlanError
from vitfold.folding.calls import fold_of
from vitfold.saving.models import create_model
from vitfold.saving.schema import Plan, decode, encode
from vitfold.saving.subject import describe

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**53, 2**64, 10**400, 0.5, -0.0, 1e300),
    *("", "x", "tome", "lgtm", "../x", "\ud800", "a\nb", "é" * 300, [], {}, [[]], [None], {"": {}}),
    *({"r": 1, "inflection": 0}, [1] * 600, "timm", "digits", "other", "transformers"),
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    result: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        for key in keys:
            result += [(value, key), *places(value[key])]
    return result


def mutate_value(data: bytes, rng: random.Random) -> bytes:
    """One to three values changed, moved, removed or added."""
    value = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        spots = places(value)
        if not spots:
            break
        place, key = rng.choice(spots)
        other, there = rng.choice(spots)
        act = rng.randrange(5)
        if act == 0:
            place[key] = copy.deepcopy(rng.choice(ODD))
        elif act == 1:
            del place[key]
        elif act == 2:
            place[key] = copy.deepcopy(other[there])
        elif act == 3 and isinstance(place, dict):
            place[rng.choice([str(there), "x", "", "seed", "skip"])] = rng.choice([0, 3, "k"])
        elif isinstance(place[key], int | float):
            place[key] += rng.choice([-1, 1, 0.5, 100])
    return json.dumps(value).encode()


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, removed, doubled or cut off."""
    text = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(text) + 1)
        stop = min(len(text), start + rng.choice([1, 1, 2, 8, 64]))
        act = rng.randrange(5)
        if act == 0:
            text[start:stop] = bytes(rng.randrange(256) for _ in range(stop - start))
        elif act == 1:
            del text[start:stop]
        elif act == 2:
            text[start:start] = text[start:stop] * rng.choice([1, 1, 50])
        elif act == 3:
            text[start:start] = rng.choice([b"[", b"{", b'"', b",", b"NaN", b"1e999", b"\\u", b"9"])
        elif start:
            del text[start:]
    return bytes(text)


def bases(file: Path) -> list[bytes]:
    """Plans of all sources and methods."""
    folds_ = [
        vitfold.fold(tiny(), vitfold.ToMe((3, -1.0))),
        vitfold.fold(tiny(), vitfold.LGTM([1, 2], window=2)),
        vitfold.fold(create_model("digits"), vitfold.Drop(2)),
        vitfold.fold(models.hf("CLIPModel"), vitfold.DFE(flops=0.9)),
        vitfold.fold(small.vit(), "tome", r=1),
        vitfold.fold(create_model(f"{file}:build", depth=3), "tome", r=1),
    ]
    dense = tiny()
    return [encode(describe(model, backbone=True)) for model in (*folds_, dense)]


def accepted(data: bytes) -> Plan | None:
    """The plan in the bytes, if they are one; the only other way out is a line in a `PlanError`."""
    try:
        return decode(data)
    except PlanError as error:
        line = str(error)
    assert "\n" not in line
    assert len(line) < 700
    return None


def test_10000_mutated_plans(tmp_path: Path) -> None:
    rng, plans, good = random.Random(0), bases(own_file(tmp_path)), 0
    for number in range(10_000):
        mutate = mutate_value if number % 2 else mutate_bytes
        data = mutate(rng.choice(plans), rng)
        plan = accepted(data)
        if plan is not None:
            good += 1
            assert decode(encode(plan)) == plan
            inputs = json.loads(data)
            assert json.loads(encode(plan)) == inputs | {
                "method": plan.method and plan.method.to_json()
            }
    assert 100 < good < 9_000


def test_mutated_plans_through_all_of_load(copied: Path) -> None:
    rng, data = random.Random(1), (copied / "plan.json").read_bytes()
    good = 0
    for number in range(600):
        mutate = mutate_value if number % 4 else mutate_bytes
        (copied / "plan.json").write_bytes(mutate(data, rng))
        plan = accepted((copied / "plan.json").read_bytes())
        try:
            model = vitfold.load(copied)
        except PlanError:
            continue
        assert plan is not None
        assert (fold_of(model).method, fold_of(model).schedule) == (plan.method, plan.schedule)
        good += 1
    assert good > 5


def test_mutated_weights(copied: Path) -> None:
    rng, path = random.Random(2), copied / "weights.safetensors"
    data = path.read_bytes()
    head = 8 + int.from_bytes(data[:8], "little")
    for number in range(300):
        if number % 3:
            path.write_bytes(mutate_bytes(data[:head], rng) + data[head:])
        else:
            path.write_bytes(mutate_bytes(data, rng))
        if path.read_bytes() != data:
            refused(copied)
