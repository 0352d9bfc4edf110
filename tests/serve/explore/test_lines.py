"""What the page gives to copy runs, and gives the fold that was looked at."""

import shlex
from pathlib import Path

import pytest
from support.cli import vitfold_
from support.file import own_file

import vitfold
from vitfold.serve.explore import lines
from vitfold.serve.explore.explorer import OWN, Pick
from vitfold.serve.explore.lines import Origin


def result(text: str) -> object:
    """The model that Python makes."""
    names: dict[str, object] = {}
    exec(text, names)
    return names["model"]


def test_python_and_command_give_the_fold(monkeypatch, tmp_path: Path, capsys) -> None:
    file = own_file(tmp_path / "it's mine")
    origin = Origin(f"{file}:build", None, {"depth": 3})
    pick = Pick("ward", 0.7)
    model = result(lines.python(origin, pick))
    assert vitfold.folded(model).method == vitfold.Ward(flops=0.7)  # type: ignore[arg-type, union-attr]
    assert len(vitfold.folded(model).schedule) == 3  # type: ignore[arg-type, union-attr]
    words = shlex.split(lines.command(origin, pick, "eager", 2))
    assert words[0] == "vitfold"
    assert vitfold_(monkeypatch, *words[1:], "--repeats", "1") == 0
    shown = capsys.readouterr().out
    assert "Ward(flops=0.7)" in shown
    assert "batch size 2" in shown


def test_a_plan_is_named_too(monkeypatch, tmp_path: Path) -> None:
    name = f"{own_file(tmp_path)}:build"
    model = vitfold.fold(vitfold.create_model(name), "tome", r=2)
    vitfold.save(model, tmp_path / "plan")
    origin = Origin(name, None, {}, tmp_path / "plan", folded=True)
    own = result(lines.python(origin, Pick(OWN, 1.0)))
    assert vitfold.folded(own).method == vitfold.ToMe(r=2)  # type: ignore[arg-type, union-attr]
    other = result(lines.python(origin, Pick("drop", 0.7)))
    assert vitfold.folded(other).method == vitfold.Drop(flops=0.7)  # type: ignore[arg-type, union-attr]
    words = shlex.split(lines.command(origin, Pick(OWN, 1.0), "eager", 1))
    assert vitfold_(monkeypatch, *words[1:], "--repeats", "1") == 0
    assert lines.command(origin, Pick("drop", 0.7), "eager", 1).startswith("#")


def test_random_weights_are_the_same_every_time() -> None:
    origin = Origin("test_vit", False, {"num_classes": 3}, device="cuda")
    one, other = (result(lines.python(origin, Pick("tome", 0.6))) for _ in range(2))
    assert one.head.weight.equal(other.head.weight)  # type: ignore[attr-defined]
    words = shlex.split(lines.command(origin, Pick("tome", 0.6), "compile", 4))
    assert words == [
        "vitfold", "bench", "test_vit", "--model-kwargs", "num_classes=3", "--no-pretrained",
        "--device", "cuda", "--method", "tome", "--flops", "0.6", "--runtime", "compile",
        "-b", "4",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ['a"b', "it's", "back\\slash", "plain"])
def test_names_are_quoted(name: str) -> None:
    text = lines.python(Origin(name), Pick("tome"))
    line = next(line for line in text.splitlines() if "create_model" in line)
    given: list[str] = []

    class Fake:
        @staticmethod
        def create_model(model: str, pretrained: bool) -> "Fake":
            given.append(model)
            return Fake()

        def eval(self) -> None:
            pass

    exec(line, {"vitfold": Fake})
    assert given == [name]
