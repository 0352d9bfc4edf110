"""Models that a function in a file makes: `FILE.py:function`."""

import copy
import json
import os
import pickle
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import small
from support.file import own_file, runs
from support.saving import DEPTH, output, put, refused, same, tiny
from torch import nn

import vitfold
from vitfold import segment
from vitfold.cli import values
from vitfold.errors import PlanError, UnsupportedModel
from vitfold.folding.calls import fold_of
from vitfold.folding.fold import clone
from vitfold.saving import models, sources
from vitfold.saving.models import create_model, save_model
from vitfold.saving.sources.file import command_line


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return own_file(tmp_path / "own")


def images(model: nn.Module) -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def plan_of(directory: Path) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((directory / "plan.json").read_text())
    return plan


def rejected(name: str, **kwargs: Any) -> str:
    """What the error says, on its one line."""
    with pytest.raises(UnsupportedModel) as caught:
        create_model(name, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def put_function(directory: Path, text: str) -> str:
    """A file with other lines in it."""
    (directory / "lines.py").write_text(text)
    return f"{directory / 'lines.py'}:build"


def test_the_function_makes_the_model(file: Path) -> None:
    before = list(sys.path)
    model: Any = create_model(f"{file}:build", depth=3)
    assert (len(model.blocks), model.training) == (3, False)
    assert sys.path[: len(before)] == before
    assert not any("file" in key for key in model.state_dict())
    assert "model.py" not in repr(model)
    vitfold.fold(model, "tome", r=2)
    assert model(images(model)).shape == (2, 2)


def test_paths_lead_there_from_the_working_directory(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm has a model of the first name."""
    monkeypatch.chdir(file.parent)
    (file.parent / "test_vit.py").write_text(file.read_text())
    (file.parent / "a:b.py").write_text(file.read_text())
    for name in ("test_vit.py:build", "./model.py:build", "a:b.py:build"):
        assert create_model(name).__class__.__name__ == "VisionTransformer"
        save_model(create_model(Path(name)), "saved")
        assert plan_of(Path("saved"))["model"]["name"] == str(Path(name))


@pytest.mark.parametrize("pretrained", [False, True])
def test_who_asks_for_weights_is_told(tmp_path: Path, pretrained: bool) -> None:
    text = """
from torch import nn
def build(pretrained=None):
    return nn.Linear(1, 1 if pretrained is None else 2 + pretrained)
def plain(**kwargs):
    return nn.Linear(1, 1 + len(kwargs))
"""
    model: Any = create_model(put_function(tmp_path, text), pretrained=pretrained)
    assert model.out_features == 2 + pretrained
    name = put_function(tmp_path, text).replace(":build", ":plain")
    model = create_model(name, pretrained=pretrained, anything=1)
    assert model.out_features == 2


def test_a_file_is_imported_once_until_it_changes(file: Path) -> None:
    first, second = (create_model(f"{file}:build") for _ in range(2))
    assert runs(file) == ["import", "build", "build"]
    kinds = [type(model.blocks[0].norm1[1]) for model in (first, second)]  # type: ignore[index]
    assert kinds[0] is kinds[1]
    file.write_text(file.read_text().replace('note("build")', 'note("other")'))
    create_model(f"{file}:build")
    assert runs(file)[3:] == ["import", "other"]
    assert not list(file.parent.glob("__pycache__/model.*"))


WRONG: list[tuple[str, str]] = [
    ("def build(:", "the file fails to import: SyntaxError: "),
    ("import nothing_of_that_name", "the file fails to import: ModuleNotFoundError: No module"),
    ("x = 1\nraise ValueError('a\\nb')", "fails to import: ValueError: a (line 2)"),
    ("raise SystemExit(3)", "the file fails to import: SystemExit: 3"),
    ("def built(): pass", "the file has no function 'build' (did you mean 'built'?)"),
    ("from torch import nn\nbuild = nn.Linear(1, 1)", "'build' is a Linear: expected a function"),
    ("build = 3", "'build' is a int: expected a function that makes the model"),
    ("def build(): return 1, 2", "it returned a tuple: expected a torch.nn.Module"),
    ("def build():\n    1 / 0", "it raised ZeroDivisionError: division by zero (line 2)"),
    ("def build(): raise SystemExit", "it raised SystemExit"),
    ("def build(depth): pass", "missing a required argument: 'depth'"),
]


@pytest.mark.parametrize(("text", "expected"), WRONG)
def test_what_goes_wrong_in_a_file_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    before = set(sys.modules)
    name = put_function(tmp_path, text)
    message = rejected(name)
    assert f"{tmp_path.name}/lines.py:build cannot be made: " in message
    assert expected in message
    if "import" in expected:
        assert not {m for m in sys.modules if m.startswith("lines")} - before


def test_a_file_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    before = set(sys.modules)
    with pytest.raises(KeyboardInterrupt):
        create_model(put_function(tmp_path, "raise KeyboardInterrupt"))
    assert not {module for module in sys.modules if module.startswith("lines_")} - before
    assert sys.path[0] != str(tmp_path)


def test_what_a_function_does_to_its_arguments_is_not_saved(tmp_path: Path) -> None:
    text = """
from support import small
def build(sizes):
    return small.vit(depth=sizes.pop())
"""
    save_model(create_model(put_function(tmp_path, text), sizes=[1, 2]), tmp_path / "saved")
    assert plan_of(tmp_path / "saved")["model"]["arguments"] == {"sizes": [1, 2]}


def test_arguments_that_a_function_does_not_take(tmp_path: Path) -> None:
    name = put_function(tmp_path, "def build(depth=1): pass\ndef bare(): pass")
    assert "takes no argument 'dept' (did you mean 'depth'?)" in rejected(name, dept=1)
    bare = name.replace(":build", ":bare")
    assert "takes no argument 'depth' (it takes none)" in rejected(bare, depth=1)


def test_what_is_no_name_of_a_function(file: Path) -> None:
    assert "No such file or directory" in rejected(f"{file.parent}/none.py:build")
    assert "no function is named: expected FILE.py:function" in rejected(f"{file}:")
    assert "name the function in it that makes the model too" in rejected(str(file))
    other = file.with_suffix(".txt")
    other.write_text("")
    assert "unknown model" in rejected(f"{other}:build")
    assert "expected FILE.py:function" in rejected(f"{other}:build")
    assert "cannot be made" in rejected("C:\\models\\mine.py:build")
    assert "cannot be made" in rejected("a\0b.py:build")
    assert "cannot be made" in rejected("x" * 5000 + ".py:build")
    assert "did you mean 'build'?" in rejected(f"{file}:buidl")
    assert runs(file) == ["import"]


# Saved


Change = Callable[[nn.Module], Any]

CHANGES: dict[str, Change] = {
    "as it is": lambda model: model,
    "copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "cloned": clone,
    "folded and unfolded": lambda model: vitfold.unfold(vitfold.fold(model, "tome", r=1)),
    "as floats": lambda model: model.double().float().train(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_model_knows_what_made_it(file: Path, tmp_path: Path, what: str) -> None:
    made = create_model(f"{file}:build", depth=3)
    before = set(vars(made))
    model = CHANGES[what](made)
    assert set(vars(model)) == before
    for method in (None, vitfold.ToMe(2)):
        if method is not None:
            vitfold.fold(model, method)
        save_model(model, tmp_path / "saved")
        record = plan_of(tmp_path / "saved")["model"]
        known = [record[key] for key in ("source", "name", "arguments")]
        assert known == ["file", f"{file}:build", {"depth": 3}]


def test_what_was_pickled_is_found_once_the_file_is_named(file: Path, tmp_path: Path) -> None:
    text = "class Own(Clamp):\n    pass\n\n\ndef build(img_size"
    file.write_text(
        file.read_text().replace("def build(img_size", text).replace(", Clamp()", ", Own()")
    )
    model = vitfold.fold(create_model(f"{file}:build"), "tome", r=2)
    torch.save(model, tmp_path / "model.pt")
    torch.save(output(model, images(model)), tmp_path / "output.pt")
    script = """
import sys, torch, vitfold
vitfold.create_model(sys.argv[1])
model = torch.load(sys.argv[2], weights_only=False)
images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    torch.testing.assert_close(model(images), torch.load(sys.argv[3]))
"""
    places = [f"{file}:build", str(tmp_path / "model.pt"), str(tmp_path / "output.pt")]
    subprocess.run([sys.executable, "-c", script, *places], check=True)


def test_a_plan_is_loaded_onto_a_model_that_is_given(file: Path, tmp_path: Path) -> None:
    model = vitfold.fold(create_model(f"{file}:build"), "lgtm", r=2)
    model.norm.weight.data.fill_(3)  # type: ignore[union-attr, operator]
    save_model(model, tmp_path / "saved")
    loaded = vitfold.load(tmp_path / "saved", create_model(f"{file}:build"))
    assert same(model, loaded, images(model))
    by_hand: Any = copy.deepcopy(create_model(f"{file}:build"))
    del vars(by_hand)["_vitfold_file"]
    assert same(model, vitfold.load(tmp_path / "saved", by_hand), images(model))
    other = create_model(f"{file}:build", depth=3)
    assert "model.trunk.depth=2" in refused(tmp_path / "saved", other)


def test_a_model_of_a_file_takes_plans_as_without_it(file: Path, tmp_path: Path) -> None:
    """One of a model without a name is welcome, one of another model by name is refused."""
    nameless = create_model(f"{file}:build")
    save_model(vitfold.fold(small.vit((4, 4), 2, embed_dim=24), "tome", r=2), tmp_path / "other")
    put(tmp_path / "other", "weights", None)
    assert fold_of(vitfold.load(tmp_path / "other", nameless)).schedule == (2, 2)
    vitfold.save(vitfold.fold(tiny(), "tome", r=2), tmp_path / "timm")
    text = f"""
from support import models
def build():
    return models.hf("ViTModel", num_hidden_layers={DEPTH})
"""
    model = create_model(put_function(tmp_path, text))
    assert "this model is of transformers" in refused(tmp_path / "timm", model)
    own = create_model(put_function(tmp_path, "from support.saving import tiny as build"))
    assert fold_of(vitfold.load(tmp_path / "timm", own)).schedule == (2,) * DEPTH


def test_a_plan_runs_no_file(file: Path, tmp_path: Path) -> None:
    """Nor does anything else that looks at it."""
    name, saved = f"{file}:build", tmp_path / "saved"
    model = create_model(name, num_classes=5)
    before = runs(file)
    vitfold.save(vitfold.fold(model, "tome", r=2), saved)
    save_model(model, saved)
    for attempt in (vitfold.load, create_model, lambda path: create_model(path, img_size=64)):
        with pytest.raises(PlanError) as caught:
            attempt(saved)  # type: ignore[operator]
        message = str(caught.value)
        assert "\n" not in message
        assert f"vitfold.load(directory, vitfold.create_model('{name}', num_classes=5))" in message
        assert f"{name} --model-kwargs num_classes=5 --plan DIR" in message
    for one in (name, saved):
        assert models.dataset_of(one) is None
        assert not models.is_named(str(one))
        assert models.is_folded(one) == (one == saved)
        assert segment.saved_classes(str(one)) is None
    assert models.origin_of(name) is None
    origin = models.origin_of(saved)
    assert origin == ("file", name, {"num_classes": 5})
    with pytest.raises(PlanError):
        sources.build(origin)
    with pytest.raises(UnsupportedModel):
        segment.create_segmenter(str(saved), 2)
    assert runs(file) == before


def test_a_file_beside_a_plan_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a plan says, and wherever it lies."""
    file = own_file(tmp_path)
    save_model(create_model(f"{file}:build"), tmp_path)
    before = runs(file)
    monkeypatch.chdir(tmp_path)
    for name in ("model.py:build", "./model.py:build", "bounds.py:Clamp", str(file) + ":build"):
        put(tmp_path, "model/name", name)
        assert "never runs" in refused(Path())
        assert "never runs" in refused(tmp_path)
    modules = set(sys.modules)
    assert runs(file) == before
    assert not {module for module in modules if module.startswith("bounds_")}


def test_arguments_come_back_from_the_command_line() -> None:
    arguments = {"a": 1, "b": "gelu", "c": "1", "d": "None", "e": [1, "x y"], "f": None, "g": "a=b"}
    words = shlex.split(command_line("a b.py:build", arguments))
    assert words[:2] == ["a b.py:build", "--model-kwargs"]
    assert values.parse(words[2:]) == arguments


NAMES: list[Any] = [
    *("model.py", "model.py:", ":build", "model.txt:build", "model.py:a/b", "model.py:a.b"),
    *("model.py:build()", "a\nb.py:build", "a\0b.py:build", "\ud800.py:build", 3, None),
    "x" * 1100 + ".py:build",
]

ARGUMENTS: list[Any] = [
    *([], None, "depth=3", {"a b": 1}, {"": 1}, {"x" * 99: 1}, {"a": "x" * 2000}),
    *({"a": [1] * 600}, {"a": [[[[[1]]]]]}, {"é": 1}, {"a": {"b": [["x" * 2000]]}}),
]


@pytest.mark.parametrize(
    ("field", "value"), [*(("name", n) for n in NAMES), *(("arguments", a) for a in ARGUMENTS)]
)
def test_odd_names_and_arguments_are_refused(
    file: Path, tmp_path: Path, field: str, value: Any
) -> None:
    save_model(create_model(f"{file}:build"), tmp_path / "saved")
    put(tmp_path / "saved", f"model/{field}", value)
    message = refused(tmp_path / "saved", create_model(f"{file}:build"))
    assert f"model.{field}" in message
    assert "expected" in message


def test_long_names_make_no_long_lines(file: Path, tmp_path: Path) -> None:
    save_model(create_model(f"{file}:build"), tmp_path / "saved")
    put(tmp_path / "saved", "model/name", "/x y" * 200 + "'.py:build")
    put(tmp_path / "saved", "model/arguments", {"a": "x\n" * 400, "b": {"c": [1, None, True]}})
    assert "never runs" in refused(tmp_path / "saved")


def test_arguments_that_are_no_json_make_a_model_without_a_name(tmp_path: Path) -> None:
    text = "from support import small\ndef build(extra): return small.vit()"
    model = create_model(put_function(tmp_path, text), extra=object())
    save_model(model, tmp_path / "saved")
    assert plan_of(tmp_path / "saved")["model"]["source"] == "other"
    vitfold.load(tmp_path / "saved", small.vit())


def test_segmenters_of_files(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="let the function return the whole segmenter"):
        segment.create_segmenter(f"{file}:build", 2)
    model = create_model(f"{file}:scenes")
    save_model(vitfold.fold(model, "tome", r=1), tmp_path / "whole")
    assert plan_of(tmp_path / "whole")["model"]["name"] == f"{file}:scenes"
    again = vitfold.load(tmp_path / "whole", create_model(f"{file}:scenes"))
    assert torch.equal(output(again, images(again)), output(model, images(model)))
    around = segment.Segmenter(create_model(f"{file}:build", num_classes=0), 2)
    vitfold.save(vitfold.fold(around, "tome", r=1), tmp_path / "around")
    assert plan_of(tmp_path / "around")["model"]["source"] == "other"
    assert os.listdir(tmp_path / "around") == ["plan.json"]
