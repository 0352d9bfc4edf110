"""Methods of a user's own on the command line: `--import`, and entry points of packages."""

import importlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli import pictures, vitfold_

import vitfold
from vitfold.errors import MethodError
from vitfold.folding.calls import fold_of
from vitfold.methods import plugins

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-method.md"

TINY = ["vit_tiny_patch16_224", "--model-kwargs", "depth=2 embed_dim=48 num_heads=3",
        "--img-size", "64"]  # fmt: skip


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The method of the docs in a module of the working directory."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    [code] = [block for block in blocks if "class Tail" in block]
    (tmp_path / "tail.py").write_text(code.partition("vitfold.fold(")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    importlib.invalidate_caches()
    yield "tail"
    sys.modules.pop("tail", None)
    vitfold.METHODS.pop("tail", None)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    return lambda *arguments: vitfold_(monkeypatch, *map(str, arguments))


FAST = ("-b", "1", "--repeats", "1")


def test_commands_take_a_method_of_a_users_own(run, capsys, module: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    assert run("bench", *TINY, "--import", module, "--method", "tail", "--r", "4", *FAST) == 0
    assert "Tail(r=4)" in capsys.readouterr().out
    data = pictures(tmp_path / "data")
    assert run("sweep", *TINY, "--import", module, "--no-pretrained", "--methods", "tail",
               "--flops", "0.8", "--no-baselines", "--data-dir", data, *FAST,
               "--results-file", rows) == 0  # fmt: skip
    assert [row["method"] for row in json.loads(rows.read_text())["rows"]] == ["dense", "tail"]


def test_a_plan_may_hold_such_a_method(run, capsys, module: str, tmp_path: Path) -> None:
    sys.path.insert(0, str(tmp_path))
    importlib.import_module(module)
    model = vitfold.fold(vitfold.create_model("digits"), "tail", r=4)
    vitfold.save(model, tmp_path / "plan", backbone=True)
    sys.modules.pop("tail")
    vitfold.METHODS.pop("tail")
    assert run("bench", tmp_path / "plan", *FAST) == 2
    report = capsys.readouterr().err
    assert "unknown method 'tail'" in report
    assert "--import MODULE" in report
    assert run("bench", tmp_path / "plan", "--import", module, *FAST) == 0
    assert "Tail(r=4)" in capsys.readouterr().out


def test_the_environment_names_modules_too(run, monkeypatch, module: str) -> None:
    monkeypatch.setenv("VITFOLD_IMPORT", module)
    assert run("bench", *TINY, "--method", "tail", "--r", "4", *FAST) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no module of that name"),
        ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        ("1 / 0", "ZeroDivisionError"),
        ("def", "SyntaxError"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(
    run, capsys, monkeypatch, tmp_path: Path, text: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"broken_{abs(hash(text))}"
    if text is not None:
        (tmp_path / f"{name}.py").write_text(text)
    assert run("bench", "digits", "--import", name) == 2
    report = capsys.readouterr().err
    assert report.startswith(f"error: --import {name}: ")
    assert message in report
    assert report.count("\n") == 1


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[importlib.metadata.EntryPoint]]:
    """Entry points of packages, as if they were installed; they are looked up anew."""
    entries: list[importlib.metadata.EntryPoint] = []

    def entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
        return [entry for entry in entries if entry.group == group]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    plugins.load_plugins.cache_clear()
    yield entries
    plugins.load_plugins.cache_clear()


def test_a_package_brings_methods_by_an_entry_point(
    installed, monkeypatch, module: str, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    group = "vitfold.methods"
    installed.append(importlib.metadata.EntryPoint("broken", "no_such_package", group))
    installed.append(importlib.metadata.EntryPoint("tail", module, group))
    assert module not in sys.modules
    with pytest.warns(UserWarning, match="the plugin broken = no_such_package"):
        model = vitfold.fold(vitfold.create_model("digits"), "tail", r=4)
    assert type(fold_of(model).method).__name__ == "Tail"


def test_known_methods_load_no_package(installed) -> None:
    installed.append(importlib.metadata.EntryPoint("x", "no_such_package", "vitfold.methods"))
    vitfold.fold(vitfold.create_model("digits"), "tome", r=4)  # a warning would be an entry loaded
    assert plugins.load_plugins.cache_info().misses == 0
    with pytest.raises(MethodError, match="--import MODULE"), pytest.warns(UserWarning, match="x"):
        vitfold.fold(vitfold.create_model("digits"), "tame", r=4)
