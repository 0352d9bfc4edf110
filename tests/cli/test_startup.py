"""What is imported when: nothing for help, the core alone for folding."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import vitfold
from vitfold import __main__ as entry
from vitfold.cli import commands, names
from vitfold.methods import METHODS, PruneMerge, ready
from vitfold.methods.prune_merge import structure
from vitfold.methods.recipe import MethodRecipe
from vitfold.segment import DECODERS, VOID
from vitfold.serve.embed import ENGINES
from vitfold.tools.prune_merge.search import ITERATIONS

SOURCE = Path(vitfold.__file__).parent

OTHER_ROOMS = ("segment", "train", "data", "lab", "cli", "serve")


def loaded(code: str) -> set[str]:
    """Modules that are loaded after some code, in a process of its own."""
    message = "import sys, json; sys.stderr.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{message}"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(SOURCE.parent), "PATH": ""},
    )
    return set(json.loads(done.stderr))


def run(*arguments: str) -> set[str]:
    """The same after a command that exits."""
    return loaded(
        f"import sys; sys.argv = ['vitfold', *{arguments!r}]\n"
        "from vitfold.__main__ import main\n"
        "try: main()\nexcept SystemExit as stop: assert not stop.code"
    )


def test_vitfold_itself_imports_nothing() -> None:
    modules = loaded("import vitfold")
    assert {name for name in modules if name.startswith("vitfold")} == {"vitfold"}
    assert not {"torch", "timm", "torchvision"} & modules


def test_folding_imports_the_core_alone() -> None:
    modules = loaded("from vitfold import ToMe, calibrate, flops, fold, freeze, trace, validate")
    rooms = {name.split(".")[1] for name in modules if name.startswith("vitfold.")}
    assert not rooms & {*OTHER_ROOMS, "saving"}
    assert "vitfold.folding.fold" in modules
    assert "torchvision.transforms.v2" not in modules


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("demo", "--help"),
        ("bench", "--help"),
        ("validate", "--help"),
        ("sweep", "--help"),
        ("train", "--help"),
        ("search", "--help"),
        ("trace", "--help"),
        ("calibrate", "--help"),
        ("freeze", "--help"),
        ("embed", "--help"),
        ("explore", "--help"),
        ("families", "--help"),
        ("report", "--help"),
        ("analyze", "--help"),
        ("analyze", "sharpness", "--help"),
    ],
    ids=" ".join,
)
def test_help_needs_no_library_of_models(arguments: tuple[str, ...]) -> None:
    assert not {"torch", "timm", "numpy", "transformers"} & run(*arguments)


def test_names_in_help_are_those_of_what_there_is() -> None:
    ours = {name for name, kind in METHODS.items() if kind.__module__.startswith("vitfold.")}
    assert set(names.METHODS) == ours
    assert [*names.READY] == [name for name in ready() if name in ours]
    assert (*names.DECODERS, names.VOID) == (*DECODERS, VOID)
    assert names.ENGINES == ENGINES


def test_what_help_says_of_a_search_is_what_it_does() -> None:
    assert (PruneMerge.keep, PruneMerge.prune) == (names.KEEP, names.PRUNE)
    assert (names.SCOPES, names.GROUPINGS) == (structure.SCOPES, structure.GROUPINGS)
    assert names.ITERATIONS == ITERATIONS


def test_what_help_says_of_trainings_is_what_methods_want() -> None:
    wanted = {name: own_training(METHODS[name].training) for name in names.METHODS}
    assert {name: wants for name, wants in wanted.items() if wants} == names.TRAINING


def own_training(recipe: MethodRecipe) -> dict[str, object]:
    """What it says, flat; a model that stays as it is has no rate."""
    wants = {name: value for name, value in vars(recipe).items() if value not in (None, {})}
    flat: dict[str, object] = {"lr": None} if wants.pop("freeze", None) == "model" else {}
    for name, value in wants.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_of_the_list_is_there(name: str) -> None:
    command = commands.load(name)
    assert command.name == name
    assert command.help


def test_every_file_of_a_command_is_in_the_list() -> None:
    files = {path.stem for path in (SOURCE / "cli").glob("*.py")}
    with_command = {
        name
        for name in files - {"__init__"}
        if any(
            isinstance(node, ast.FunctionDef) and node.name == name
            for node in ast.parse((SOURCE / "cli" / f"{name}.py").read_text()).body
        )
    }
    assert with_command <= set(commands.COMMANDS) <= files


def test_every_public_name_is_where_a_type_checker_sees_it() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    [checked] = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    ]
    visits = {alias.name for node in checked.body for alias in node.names}
    assert visits == set(vitfold.HOMES) == set(vitfold.__all__)
    assert set(vitfold.__all__) <= set(dir(vitfold))
    with pytest.raises(AttributeError, match="no attribute 'fould'"):
        vitfold.fould  # noqa: B018


def test_a_method_that_is_searched_for_has_its_search() -> None:
    loaded("from vitfold import PruneMerge; PruneMerge.search")


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["vitfold", "bench", "digits"])
    monkeypatch.setattr(commands, "load", interrupt)  # as libraries are imported
    with pytest.raises(SystemExit) as stop:
        entry.main()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "stopped\n"
    monkeypatch.setattr("vitfold.cli.main", interrupt)  # before there is any command
    with pytest.raises(SystemExit) as stop:
        entry.main()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "stopped\n"
