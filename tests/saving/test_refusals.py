"""Whatever is wrong with a saved model is refused by name, in one line."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import models
from support.saving import put, refused, tiny
from torch import Tensor

import vitfold
from vitfold.saving.sources.hf import CLASSES

WRONG: list[tuple[str, Any, str]] = [
    ("schema", 3, "schema=3: expected 1 to 2"),
    ("schema", True, "schema=True: expected 1 to 2"),
    ("schema", 1.0, "schema=1.0: expected 1 to 2"),
    ("schema", ..., "schema is missing"),
    ("extra", 1, "extra is unknown"),
    ("shedule", [], "shedule is unknown (did you mean 'schedule'?)"),
    ("model", ..., "model is missing"),
    ("model", [], "model=[]: expected an object"),
    ("model/source", "torch.hub", "model.source='torch.hub': expected one of file, packaged, timm"),
    ("model/name", "os.system", "model.name='os.system': timm has no such model"),
    ("model/name", "test_vit.zzz", "model.name='test_vit.zzz': timm has no such model"),
    ("model/name", "hf-hub:a/b", "model.name='hf-hub:a/b': expected the name of a timm model"),
    ("model/name", "resnet18", "model."),
    ("model/name", 3, "model.name=3: expected"),
    (
        "model/arguments/pretrained_cfg",
        {"file": "x"},
        "arguments.pretrained_cfg: a plan sets no",
    ),
    ("model/arguments/checkpoint_path", "/x", "model.arguments.checkpoint_path: a plan sets no"),
    ("model/arguments/cache_dir", "x", "model.arguments.cache_dir: a plan sets no files"),
    ("model/arguments/pruned", True, "model.arguments.pruned: a plan sets no files"),
    ("model/arguments/features_only", True, "model.arguments.features_only: a plan sets no"),
    ("model/arguments/block_fn", "Block", "model.arguments.block_fn: a plan sets no"),
    ("model/arguments/Depth", 2, "model.arguments.Depth: a plan sets no"),
    ("model/arguments/norm_layer", "../x", "model.arguments.norm_layer='../x': expected a word"),
    ("model/arguments/norm_layer", {}, "model.arguments.norm_layer={}: expected an int"),
    ("model/arguments/norm_layer", [[1]], "model.arguments.norm_layer=[1]: expected an int"),
    ("model/arguments/pretrained_cfg_overlay", {"url": "x"}, "overlay.url is unknown"),
    ("model/arguments/img_size", "x", "model.arguments do not make a test_vit"),
    ("model/arguments/img_size", [32, 0], "model.arguments do not make a test_vit"),
    ("model/arguments/img_size", [32] * 600, "model.arguments.img_size=[32"),
    ("model/arguments/embed_dim", 1e9, "model.arguments do not make a test_vit"),
    ("model/arguments/depth", 10**9, "model.arguments.depth=1000000000: expected an int"),
    ("model/arguments/num_heads", 5, "model.arguments do not make a test_vit"),
    ("model/arguments/img_size", 48, "weights.safetensors: pos_embed has shape"),
    ("model/arguments/global_pool", "nope", "model.arguments do not make a test_vit"),
    ("model/trunk/depth", 5, "schedule has 4 numbers: expected model.trunk.depth=5"),
    ("model/trunk/width", 33, "model.trunk.width=33: this VisionTransformer has 32"),
    ("model/trunk/width", 0, "model.trunk.width=0: expected an int from 1"),
    ("model/trunk/prefix", True, "model.trunk.prefix=True: expected an int"),
    ("model/trunk", None, "model.trunk=None: expected depth, width and prefix"),
    ("model/trunk", 4, "model.trunk=4: expected an object with depth, width, prefix"),
    ("model/values", 5, "numbers: expected model.values=5"),
    ("model/values", -1, "model.values=-1: expected an int"),
    ("model/dataset", "../x", "model.dataset='../x': expected a name, or null"),
    ("model/fingerprint", None, "model.fingerprint=None: expected 64 hex digits"),
    ("model/dtype", "load", "model.dtype='load': expected one of float32"),
    ("model/fingerprint", "0" * 64, "weights.safetensors: its values are not those of model."),
    ("model/fingerprint", "0", "model.fingerprint='0': expected 64 hex digits"),
    ("method", None, "schedule has 4 numbers: expected none, as there is no method"),
    ("method", "tome", "method: 'tome': expected an object"),
    ("method/name", "tomme", "method: unknown method 'tomme' (did you mean 'tome'?)"),
    ("method/name", ["tome"], "method: unknown method ['tome']"),
    ("method/r", -1, "method: r=-1: expected 0 or more"),
    ("method/r", 3000, "r=3000: of 16 patch tokens at most 8 can leave a block"),
    ("method/r", 5, "schedule=[3, 3, 3, 3]: ToMe(r=5) gives [5, 5, 5, 5]"),
    ("method/r", [1] * 9, "r has 9 numbers, the model 4 blocks"),
    ("method/r", 1.5, "method: r=1.5: expected an int, got float"),
    ("method/r", [1, "2"], "method: r[1]='2': expected an int, got str"),
    ("method/r", None, "method: r=None: expected a value"),
    ("method/r", {"r": 1}, "method: r={'r': 1}: expected an int, a list, or r and inflection"),
    ("method/r", {"r": 1, "inflection": 2}, "method: inflection=2: expected a number from -1"),
    ("method/flops", 0.5, "method: ToMe takes r or flops, got both"),
    ("method/cue", "K", "method: unknown cue 'K'"),
    ("method/skip", 9, "skip=9 is more than the 4 blocks"),
    ("method/window", 9, "method: ToMe has no option 'window'"),
    ("schedule", 3, "schedule=3: expected a list"),
    ("schedule", [3, 3, 3], "schedule has 3 numbers: expected model.trunk.depth=4"),
    ("schedule/3", -1, "schedule[3]=-1: expected an int from 0 to"),
    ("schedule/3", 2.0, "schedule[3]=2.0: expected an int from 0 to"),
    ("schedule/3", False, "schedule[3]=False: expected an int from 0 to"),
    ("schedule/3", 2**60, f"schedule[3]={2**60}: expected a number from"),
    ("schedule/3", 17, "schedule[3]=17: expected 0 to 16, the patch tokens"),
    ("schedule/3", 9, "schedule=[3, 3, 3, 9]: ToMe(r=3) gives [3, 3, 3, 3]"),
    ("weights", "weights.safetensors", "weights='weights.safetensors': expected an object"),
    ("weights/file", "../weights.safetensors", "weights.file='../weights.safetensors': expected"),
    ("weights/file", "a/b.safetensors", "weights.file='a/b.safetensors': expected a plain"),
    ("weights/file", "a\\b.safetensors", "weights.file="),
    ("weights/file", "..safetensors", "weights.file='..safetensors': expected a plain"),
    ("weights/file", "plan.json", "weights.file='plan.json': expected a plain"),
    ("weights/file", "weights.safetensors\n", "weights.file="),
    ("weights/file", "none.safetensors", "weights.file='none.safetensors': no such file"),
    ("weights/backbone", 1, "weights.backbone=1: expected true or false"),
    ("weights/backbone", False, "weights.safetensors: "),
    ("weights/dtype", "int8", "weights.dtype='int8': expected one of float32"),
    ("weights/dtype", ..., "weights.dtype is missing"),
    ("versions", {"numpy": "2"}, "versions.numpy is unknown"),
    ("versions/torch", 2.1, "versions.torch=2.1: expected a version"),
]


@pytest.mark.parametrize(("path", "value", "expected"), WRONG)
def test_wrong_values_are_named(copied: Path, path: str, value: Any, expected: str) -> None:
    put(copied, path, value)
    message = refused(copied)
    assert expected in message
    assert message.startswith(("plan.json: ", "weights.safetensors: "))


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON"),
    "no object": (b"[1]", "the plan=[1]: expected an object with schema, model"),
    "cut off": (b'{"schema": 1, "model"', "not JSON"),
    "no UTF-8": (b'{"schema": "\xff"}', "not JSON"),
    "NaN": (b'{"schema": NaN}', "NaN: expected a finite number"),
    "infinity": (b'{"schema": [-Infinity]}', "-Infinity: expected a finite number"),
    "a number beyond floats": (b'{"schema": 1e999}', "1e999: expected a finite number"),
    "a number with 5,000 digits": (b'{"schema": ' + b"9" * 5000 + b"}", "not JSON"),
    "a key twice": (b'{"schema": 1, "a": {"b": 1, "b": 2}}', "the key 'b' is there twice"),
    "lists in lists": (b"[" * 30 + b"]" * 30, "nested more than 12 deep"),
    "lists without end": (b"[" * 500_000 + b"]" * 500_000, "nested more than 12 deep"),
    "objects without end": (b'{"a":' * 100_000, "plan.json: "),
    "a pickle": (pickle.dumps({"schema": 1}), "not JSON"),
    "2 MB": (b" " * 2**21, "2097152 bytes: expected at most 1048576"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_plans_are_named(copied: Path, what: str) -> None:
    data, expected = BROKEN[what]
    (copied / "plan.json").write_bytes(data)
    assert expected in refused(copied)


def test_a_plan_of_100_mb_is_not_read(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (copied / "plan.json").open("wb") as file:
        file.truncate(100 * 2**20)
    monkeypatch.setattr(Path, "open", None)
    assert refused(copied) == "plan.json: 104857600 bytes: expected at most 1048576"


def test_no_plan_is_named(tmp_path: Path) -> None:
    assert "is no directory: give a directory that vitfold.save" in refused(tmp_path / "none")
    assert "has no plan.json" in refused(tmp_path)
    (tmp_path / "plan.json").mkdir()
    assert "is not a file" in refused(tmp_path)
    assert "cannot be read" in refused(Path("a\0b"))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "plan.json")
    assert "is not a file" in refused(tmp_path)


class Bomb:
    """What must never be unpickled."""

    def __reduce__(self) -> Any:
        return (os.abort, ())


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Bomb()))


def header(path: Path, text: bytes, size: int | None = None) -> None:
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text)


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "not a safetensors file"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(Bomb())), "not a safetensors file"),
    "torch.save": (lambda path: torch.save({"a": torch.ones(1)}, path), "not a safetensors file"),
    "a zip": (archive, "not a safetensors file"),
    "a long header": (lambda path: header(path, b"{}", 2**40), "bytes: expected at most 8388608"),
    "a header beyond": (lambda path: header(path, b"{}", 999), "cannot be read as safetensors"),
    "a broken header": (lambda path: header(path, b"{nope}"), "cannot be read as safetensors"),
    "places beyond": (
        lambda path: header(path, b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'),
        "cannot be read as safetensors",
    ),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cannot be read"),
}


@pytest.mark.parametrize("what", FILES)
def test_broken_weights_are_named(copied: Path, what: str) -> None:
    change, expected = FILES[what]
    change(copied / "weights.safetensors")
    message = refused(copied)
    assert message.startswith("weights.safetensors: ")
    assert expected in message


Tensors = dict[str, Tensor]

TENSORS: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "missing": (lambda t: t.pop("norm.bias"), "norm.bias is missing"),
    "unknown": (lambda t: t.update(extra=torch.ones(1)), "extra is unknown to the model"),
    "shape": (
        lambda t: t.update({"norm.bias": torch.ones(33)}),
        "norm.bias has shape [33]: expected [32]",
    ),
    "dtype": (
        lambda t: t.update({"norm.bias": torch.ones(32, dtype=torch.int64)}),
        "norm.bias has dtype int64: expected float32",
    ),
    "values": (lambda t: t["norm.bias"].add_(1), "its values are not those of model.fingerprint"),
}


@pytest.mark.parametrize("what", TENSORS)
def test_weights_that_do_not_fit_are_named(copied: Path, what: str) -> None:
    change, expected = TENSORS[what]
    tensors = load_file(copied / "weights.safetensors")
    change(tensors)
    save_file(tensors, copied / "weights.safetensors")
    assert f"weights.safetensors: {expected}" in refused(copied)
    assert f"weights.safetensors: {expected}" in refused(copied, tiny())


def test_a_link_that_leaves_the_directory_is_refused(copied: Path, tmp_path: Path) -> None:
    inside, weights = tmp_path / "inside", copied / "weights.safetensors"
    inside.mkdir()
    (copied / "plan.json").rename(inside / "plan.json")
    (inside / "weights.safetensors").symlink_to(weights)
    assert "a link that leaves the directory" in refused(inside)
    weights.rename(inside / "real.safetensors")
    (inside / "weights.safetensors").unlink()
    (inside / "weights.safetensors").symlink_to("real.safetensors")
    vitfold.load(inside)
    (inside / "weights.safetensors").unlink()
    (inside / "weights.safetensors").symlink_to("weights.safetensors")
    assert "weights.file='weights.safetensors': no such file" in refused(inside)


def test_a_directory_in_place_of_weights_is_refused(copied: Path) -> None:
    (copied / "weights.safetensors").unlink()
    (copied / "weights.safetensors").mkdir()
    assert "weights.file='weights.safetensors': not a file" in refused(copied)


CONFIGS: list[tuple[str, Any, str]] = [
    (
        "name",
        "PreTrainedModel",
        f"model.name='PreTrainedModel': expected one of {len(CLASSES)} names, such as",
    ),
    ("name", "Dinov2Model", "model.arguments.config."),
    ("arguments/attention", "evil/kernel", "attention='evil/kernel': expected one of eager"),
    ("arguments/checkpoint", "../x", "model.arguments.checkpoint='../x': expected the name"),
    ("arguments/checkpoint", "a/..", "model.arguments.checkpoint='a/..': expected the name"),
    ("arguments/config", 1, "model.arguments.config=1: expected an object"),
    ("arguments/config/auto_map", {}, "config.auto_map is unknown to the class"),
    ("arguments/config/quantization_config", {}, "config.quantization_config is unknown"),
    ("arguments/config/_attn_implementation", "x", "config._attn_implementation is unknown"),
    ("arguments/config/dtype", "load", "config.dtype is unknown"),
    ("arguments/config/hidden_size", "8", "model.arguments do not make a ViTModel"),
    ("arguments/config/hidden_size", 2**30, "config.hidden_size=1073741824: expected a number"),
    ("arguments/config/hidden_act", "nope", "model.arguments do not make a ViTModel"),
    ("arguments/config/num_hidden_layers", 10**6, "num_hidden_layers=1000000: expected an int"),
    ("arguments/config/num_hidden_layers", 2, "model.trunk.depth=3: this ViTModel has 2"),
    ("arguments/config/image_size", 40, "weights.safetensors: "),
    ("arguments/code", "x", "model.arguments.code is unknown"),
]


@pytest.fixture(scope="module")
def saved_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    vitfold.save(vitfold.fold(models.hf("ViTModel"), "tome", r=3), directory, backbone=True)
    return directory


@pytest.mark.parametrize(("path", "value", "expected"), CONFIGS)
def test_wrong_configurations_are_named(
    saved_hf: Path, tmp_path: Path, path: str, value: Any, expected: str
) -> None:
    for file in saved_hf.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    put(tmp_path, f"model/{path}", value)
    assert expected in refused(tmp_path)
