"""`FILE.py:function` as the model of every command."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.cli import pictures, vitfold_
from support.file import own_file, runs

import vitfold
from vitfold.saving.models import create_model, save_model

NAME = "model.py:build"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a file and images, in which commands run."""
    own_file(tmp_path)
    pictures(tmp_path / "data" / "train", classes=2, each=8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def run(own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What a command says that does its work."""

    def command(line: str, *arguments: object) -> str:
        assert vitfold_(monkeypatch, *line.split(), *map(str, arguments)) == 0
        shown = capsys.readouterr()
        return shown.out + shown.err

    return command


@pytest.fixture
def refused(own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What a command says that is refused, on its one line."""

    def command(line: str) -> str:
        assert vitfold_(monkeypatch, *line.split()) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert errors == lines[-1:]
        return lines[-1]

    return command


@pytest.fixture
def folded(own: Path) -> Path:
    """A saved model of the file, folded, with weights of its own."""
    model = create_model(NAME)
    model.norm.weight.data.fill_(2)  # type: ignore[union-attr, operator]
    save_model(vitfold.fold(model, "lgtm", r=2), own / "folded")
    return own / "folded"


DATA = "--data-dir data --split train"

TIMES = "-b 1 --repeats 1 --warmup 0"

TRAIN = f"train {NAME} --data-dir data --no-val --epochs 1 -b 8 --opt sgd --lr 0.01"


@pytest.mark.parametrize(
    "line",
    [
        f"bench {NAME} --r 2 {TIMES}",
        f"bench {NAME} --r 2 {TIMES} {DATA} --model-kwargs depth=3 --img-size 64",
        f"bench model.py:scenes --task segment --r 2 {TIMES}",
        f"validate {NAME} --r 2 {DATA}",
        f"validate {NAME} --r 2 {DATA} --fidelity --model-kwargs num_classes=0",
        f"analyze similarity {NAME} {DATA}",
        f"analyze positions {NAME}",
        f"trace {NAME} data/train/class0/0.png --r 2 -o pictures",
        f"sweep {NAME} {DATA} --methods drop --flops 0.8 -b 1 --repeats 1 --trained model.py:"
        "folded --smaller-model model.py:fixed",
    ],
)  # fmt: skip
def test_commands_take_a_model_of_ones_own(run, own: Path, line: str) -> None:
    text = "import vitfold\n\n\ndef folded():\n    return vitfold.fold(build(), 'tome', r=1)\n"
    with (own / "model.py").open("a") as file:
        file.write(text)
    printout = run(line)
    assert "model.py" in printout or "wrote" in printout
    assert "connection" not in printout


def test_size_and_arguments_reach_the_function(run, refused) -> None:
    printout = run(f"bench {NAME} --r 8 {TIMES} --img-size 64 --model-kwargs depth=3")
    assert "(8, 8, 8)" in printout
    assert "takes no argument 'img_size'" in refused("bench model.py:fixed --r 2 --img-size 64")
    assert "images of 60x60 do not fit" in refused(f"bench {NAME} --r 2 --img-size 60")


@pytest.mark.parametrize("command", ["bench", "validate", "trace"])
def test_a_plan_folds_it(run, refused, folded: Path, command: str) -> None:
    more = {"bench": TIMES, "validate": DATA, "trace": "data/train/class0/0.png"}[command]
    assert "LGTM(r=2" in run(f"bench {NAME} --plan folded {TIMES}")
    assert "comes with weights" in run(f"{command} {NAME} {more} --plan folded")
    assert "leave out --method" in refused(f"{command} {NAME} {more} --plan folded --r 2")
    before = runs(folded.with_name("model.py"))
    message = refused(f"{command} folded {more}")
    assert f"or on the command line {NAME} --plan DIR" in message
    assert runs(folded.with_name("model.py")) == before


def test_a_dense_plan_brings_weights_and_leaves_the_method(run, refused, own: Path) -> None:
    """One that can be given in the place of the model is still to be given there."""
    model = create_model(NAME)
    model.head.bias.data.copy_(torch.tensor([-100.0, 100.0]))  # type: ignore[union-attr]
    save_model(model, own / "dense")
    run(f"validate {NAME} {DATA} --plan dense --r 2 --results-file rows.json")
    (row,) = json.loads((own / "rows.json").read_text())["rows"]
    assert (row["top1"], row["method"]) == (0.5, str(vitfold.ToMe(r=2)))
    run(f"analyze similarity {NAME} {DATA} --plan dense")
    save_model(create_model("digits"), own / "digits")
    message = refused("bench digits --plan digits")
    assert "--plan digits is a dense model: give it in the place of MODEL" in message


def test_a_training_goes_on_and_is_put_on_its_model(run, refused, own: Path) -> None:
    printout = run(f"{TRAIN} -o out --checkpoint-every 1")
    line = "give the model again: model.py:build --model-kwargs num_classes=2 --plan out/last"
    assert line in " ".join(printout.split())
    assert "never runs" in refused(f"validate out/last {DATA} --r 2")
    before = weights(own / "out" / "last")
    run(f"{TRAIN} -o out --checkpoint-every 1 --resume")
    assert same(weights(own / "out" / "last"), before)
    assert not same(before, create_model(NAME).state_dict())
    run(f"validate {NAME} {DATA} --plan out/last --r 2")
    more = f"{TRAIN} -o more --method tome --r 2 --lr 0 --teacher {NAME} --distill soft"
    run(f"{more} --plan out/last")
    assert same(weights(own / "more" / "last"), before)
    assert "plan was 'out/last', now None" in refused(f"{more} --resume")
    assert "folded by ToMe(r=2) already" in refused(f"{TRAIN} -o n --plan more/last --method lgtm")


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return vitfold.load(directory, create_model(NAME)).state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_head_is_the_functions_own(run, refused, own: Path) -> None:
    """It is asked for as many classes as the data has, if it takes a number."""
    pictures(own / "four", classes=4, each=4)
    four = "--data-dir four --train-split . --no-val --epochs 1 -b 8 --opt sgd --lr 0.01"
    printout = run(f"train {NAME} {four} -o four-out")
    line = f"{NAME} --model-kwargs num_classes=4"
    assert f"again: {line} --plan four-out/last" in " ".join(printout.split())
    run(f"bench {line} --plan four-out/last --r 2 {TIMES}")
    message = refused(f"bench {NAME} --plan four-out/last --r 2 {TIMES}")
    assert "head.weight has shape [4, 24]: expected [2, 24]" in message
    assert message.endswith(f": it was saved of {line}")
    plan = json.loads((own / "four-out" / "last" / "plan.json").read_text())
    assert plan["model"]["arguments"] == {"num_classes": 4}
    assert "the data has 4 classes, the model 3" in refused(f"train model.py:fixed {four} -o o")
    message = refused(f"train model.py:fixed {four} --num-classes 5 -o o")
    assert "model.py:fixed has 3 classes, not 5: leave out --num-classes" in message
    run(f"{TRAIN.replace('build', 'fixed')} --num-classes 3 -o three")
    run(f"{TRAIN} --num-classes 7 -o seven")
    plan = json.loads((own / "seven" / "last" / "plan.json").read_text())
    assert plan["model"]["arguments"] == {"num_classes": 7}
    assert "leave out what changes them" in refused(f"{TRAIN} --mean 0,0,0 -o o")


def test_a_model_without_data_is_refused_before_it_is_made(refused, own: Path) -> None:
    assert "no data" in refused(f"train {NAME} -o o")
    assert runs(own / "model.py") == []


def test_calibrated_frozen_and_searched(run, refused, own: Path) -> None:
    run(f"calibrate {NAME} --data-dir data --images 8 --flops 0.8 -o cut")
    assert "never runs" in refused(f"freeze cut {DATA} -o frozen")
    message = refused(f"freeze {NAME} --plan cut {DATA} --val-split train -o cut")
    assert "--output cut is the model, which stays" in message
    printout = run(f"freeze {NAME} --plan cut {DATA} --val-split train -o frozen")
    assert "give the model again: model.py:build --plan frozen" in " ".join(printout.split())
    assert "Ward(" in run(f"bench {NAME} --plan frozen {TIMES}")
    run(f"search {NAME} --data-dir data --iterations 2 -b 4 --blocks 0,1 -o found")
    assert "PruneMerge(" in run(f"bench {NAME} --plan found {TIMES}")
    run(f"train {NAME} --plan found --data-dir data --no-val --epochs 1 -b 8 -o trained")
    assert "PruneMerge(" in run(f"bench {NAME} --plan trained/last {TIMES}")


def test_scenes(run, refused, own: Path) -> None:
    for kind in ("images", "annotations"):
        (own / "scenes" / kind / "train").mkdir(parents=True)
    for number in range(4):
        colour = Image.new("RGB", (40, 40), (number * 60, 9, 9))
        colour.save(own / "scenes" / "images" / "train" / f"{number}.png")
        Image.new("L", (40, 40), number % 2).save(
            own / "scenes" / "annotations" / "train" / f"{number}.png"
        )
    train = "--task segment --data-dir scenes --no-val --epochs 1 -b 2 -o out"
    run(f"train model.py:scenes {train}")
    printout = run("validate model.py:scenes --plan out/last --task segment --data-dir scenes "
                   "--split train --r 1")  # fmt: skip
    assert re.search("mIoU", printout)
    assert "model.py:build makes a VisionTransformer" in refused(f"train {NAME} {train}2")
    assert "has 2 classes: leave out" in refused(f"train model.py:scenes {train}3 --num-classes 5")
    message = refused(f"bench model.py:scenes --task segment --num-classes 5 {TIMES}")
    assert "has 2 classes: leave out" in message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none.py:build", "No such file or directory"),
        ("model.py:buidl", "did you mean 'build'?"),
        ("model.py:", "no function is named"),
        ("model.py", "name the function in it that makes the model too"),
        ("broken.py:build", "the file fails to import: ZeroDivisionError: division by zero (line"),
        ("ends.py:build", "it raised SystemExit: 4"),
        ("C:\\models\\own.py:build", "No such file"),
    ],
)
def test_mistakes_are_said_in_a_line(refused, own: Path, name: str, expected: str) -> None:
    (own / "broken.py").write_text("1 / 0\n")
    (own / "ends.py").write_text("import sys\n\n\ndef build():\n    sys.exit(4)\n")
    assert expected in refused(f"bench {name}")
