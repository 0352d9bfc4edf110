"""The command line, as people use it."""

import csv
import json
import shutil
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import timm.data
import torch
import typer
from PIL import Image
from support.cli import pictures, vitfold_
from timm.data import IterableImageDataset
from typer.testing import CliRunner

import vitfold
from vitfold.cli import options, values
from vitfold.cli.groups import Group, grouped, option
from vitfold.folding.calls import fold_of
from vitfold.saving.models import create_model, save_model

TINY = ["--model-kwargs", "depth=2 embed_dim=48 num_heads=3"]
MODEL = "vit_tiny_patch16_224"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: vitfold_(monkeypatch, *map(str, arguments))


def test_bench_shows_all_candidates_and_writes_json(run, capsys, tmp_path: Path) -> None:
    target = tmp_path / "rows.json"
    arguments = ["--method", "tome", "--r", "8", "-b", "1,2", "--repeats", "1", "--warmup", "0"]
    assert run("bench", MODEL, *TINY, "--img-size", "64", *arguments[:3], "4", *arguments[4:],
               "--results-file", target) == 0  # fmt: skip
    shown = capsys.readouterr().out
    for name in ("dense", "textbook ToMe", "free slicing", "folded", "batch size 2"):
        assert name in shown
    stored = json.loads(target.read_text())
    assert {row["batch_size"] for row in stored["rows"]} == {1, 2}
    assert stored["method"] == {"name": "tome", "r": 4, "cue": "k", "skip": 0,
                                "proportional": True, "seed": 0}  # fmt: skip
    assert stored["machine"]["torch"] == torch.__version__


def test_bench_writes_csv(run, tmp_path: Path) -> None:
    target = tmp_path / "rows.csv"
    assert run("bench", MODEL, *TINY, "--img-size", "64", "--flops", "0.8", "-b", "1",
               "--repeats", "1", "--warmup", "0", "--results-file", target) == 0  # fmt: skip
    with target.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["dense", "textbook ToMe", "free slicing", "folded"]


VALIDATE = ("validate", MODEL, *TINY, "--no-pretrained", "--img-size", "64", "--r", "2")


def test_pictures_without_folders_of_classes_are_refused(run, capsys, tmp_path: Path) -> None:
    flat = pictures(tmp_path / "data", classes=1) / "class0"
    assert run(*VALIDATE, "--data-dir", flat) == 2
    assert f"{flat} has images, and no folders of classes" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(run, capsys, tmp_path: Path, workers: int) -> None:
    """And no other one is counted in its place."""
    folder = pictures(tmp_path / "data")
    broken = folder / "class0" / "1.png"
    broken.write_bytes(broken.read_bytes()[:30])
    assert run(*VALIDATE, "--data-dir", folder, "-j", workers) == 2
    printout = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert printout == [f"error: {broken} cannot be read as an image"]


def test_fewer_classes_than_the_model_has_are_noted(run, capsys, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data")
    assert run(*VALIDATE, "--data-dir", folder) == 0
    assert "of 2 classes" in " ".join(capsys.readouterr().err.split())
    with_two = [*VALIDATE[:3], TINY[1] + " num_classes=2", *VALIDATE[4:]]
    assert run(*with_two, "--data-dir", folder) == 0
    assert "classes" not in capsys.readouterr().err


def test_pictures_of_scenes_are_refused_without_the_task(run, capsys, tmp_path: Path) -> None:
    assert run("validate", "digits", "--pictures", "3") == 2
    assert "give --task segment" in capsys.readouterr().err


def test_validate_reads_a_folder_and_a_tar(run, capsys, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data")
    archive = tmp_path / "data.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname=".")
    for data in (folder, archive):
        assert run("validate", MODEL, *TINY, "--no-pretrained", "--img-size", "64", "--r", "2",
                   "--data-dir", data) == 0  # fmt: skip
        shown = capsys.readouterr().out
        assert "top-1" in shown
        assert "agrees with dense" in shown
        assert "cosine of embeddings" in shown
        assert "KL divergence" in shown


def test_validate_without_labels_compares_with_the_dense_model(run, capsys, tmp_path: Path) -> None:
    results = tmp_path / "r.json"
    options = ("--method", "tome", "--flops", "0.7", "--limit", "24", "--results-file", results)
    assert run("validate", "digits", "--fidelity", *options) == 0
    printout = capsys.readouterr().out
    for words in ("cosine of embeddings", "recall@10", "same class", "KL divergence"):
        assert words in printout
    (row,) = json.loads(results.read_text())["rows"]
    assert 0.5 < row["cosine_low"] < row["cosine"] < row["cosine_high"] <= 1
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(12):
        Image.effect_noise((200, 160), 40 + number).convert("RGB").save(photos / f"{number}.png")
    headless = ("validate", "test_vit", "--no-pretrained", "--model-kwargs", "num_classes=0")
    assert run(*headless, "--data-dir", photos, "--method", "tome", "--r", "8") == 0
    printout = capsys.readouterr().out
    assert "recall@10" in printout
    assert "same class" not in printout
    (photos / "3.png").write_bytes(b"no picture")
    assert run(*headless, "--data-dir", photos, "--method", "tome", "--r", "8") == 2
    assert f"{photos / '3.png'} cannot be read: it is no picture" in capsys.readouterr().err
    assert run("validate", "x", "--fidelity", "--task", "segment", "--data-dir", photos) == 2


def test_validate_stops_at_the_limit(run, tmp_path: Path) -> None:
    folder, target = pictures(tmp_path / "data"), tmp_path / "out.json"
    assert run("validate", MODEL, *TINY, "--no-pretrained", "--img-size", "64", "--r", "2",
               "-b", "2", "--data-dir", folder, "--limit", "3",
               "--results-file", target) == 0  # fmt: skip
    assert json.loads(target.read_text())["rows"][0]["images"] == 3


def test_a_stream_stops_at_the_limit(run, monkeypatch, tmp_path: Path) -> None:
    stream = IterableImageDataset(".", reader=[(Image.new("RGB", (64, 64)), 1)] * 7)
    monkeypatch.setattr(timm.data, "create_dataset", lambda *_, **__: stream)
    for limit, images in ((3, 3), (20, 7)):
        target = tmp_path / f"{limit}.json"
        assert run("validate", MODEL, *TINY, "--no-pretrained", "--img-size", "64", "--r", "2",
                   "-b", "2", "--dataset", "wds/any", "--limit", limit,
                   "--results-file", target) == 0  # fmt: skip
        assert json.loads(target.read_text())["rows"][0]["images"] == images


def test_a_sweep_of_the_embedded_digits_stops_at_the_limit(run, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    assert run("sweep", "digits", "--methods", "drop", "--flops", "0.5", "--no-baselines",
               "--limit", "5", "-b", "1", "--repeats", "1",
               "--results-file", target) == 0  # fmt: skip
    assert [row["images"] for row in json.loads(target.read_text())["rows"]] == [5, 5]


def test_trace_writes_pictures(run, capsys, tmp_path: Path) -> None:
    image = pictures(tmp_path / "data") / "class0" / "0.png"
    assert run("trace", MODEL, image, *TINY, "--no-pretrained", "--img-size", "64",
               "--method", "drop", "--r", "3", "-o", tmp_path / "out") == 0  # fmt: skip
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"0-tokens.png", "0-blocks.png"}
    assert "14" in capsys.readouterr().out


def test_a_plan_stands_for_model_and_method(run, capsys, tmp_path: Path) -> None:
    model = create_model(MODEL, depth=2, embed_dim=48, num_heads=3, img_size=64)
    vitfold.save(vitfold.fold(model, vitfold.LGTM(r=4, skip=0)), tmp_path / "plan", backbone=True)
    assert run("bench", tmp_path / "plan", "-b", "1", "--repeats", "1", "--warmup", "0") == 0
    assert "LGTM(r=4" in capsys.readouterr().out


def test_a_saved_plan_takes_no_other_method(run, capsys, tmp_path: Path) -> None:
    model = vitfold.fold(create_model("digits"), "tome", r=8)
    vitfold.save(model, tmp_path, backbone=True)
    assert run("bench", tmp_path, "--method", "lgtm", "--r", "2") == 2
    assert "a saved plan says how to fold" in capsys.readouterr().err
    assert run("bench", "digits", "--plan", tmp_path, "--r", "3") == 2
    printout = capsys.readouterr().err
    assert f"--plan {tmp_path} says how to fold: leave out --method, --r" in printout


def test_how_far_to_reduce_may_stand_among_the_methods_options() -> None:
    assert options.Choice("tome", None, None, ["flops=0.9"]).build() == vitfold.ToMe(flops=0.9)
    assert options.Choice(None, None, None, ["r=5"]).build() == vitfold.ToMe(r=5)
    assert options.Choice("lgtm", None, None, []).build() == vitfold.LGTM(flops=0.6)


def test_values_may_hold_spaces() -> None:
    inputs = ["img_size=(64, 64) depth=2", "act_layer=gelu"]
    assert values.parse(inputs) == {"img_size": (64, 64), "depth": 2, "act_layer": "gelu"}


def test_a_model_is_an_option_too(run, capsys, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "p.png")
    for inputs in (["--model", "digits"], ["--model=digits"]):
        assert run("trace", tmp_path / "p.png", *inputs, "--r", "8", "-o", tmp_path) == 0
        assert "block" in capsys.readouterr().out
        similarity = ["analyze", "similarity", *inputs, "--limit", "2", "-o", tmp_path / "s.png"]
        assert run(*similarity) == 0


def test_a_sweep_is_not_written_over(run, capsys, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text('{"command": "sweep", "rows": []}')
    assert run("bench", "digits", "--results-file", rows) == 2
    assert "rows.json holds a sweep: give another name" in capsys.readouterr().err


def test_weights_that_are_no_numbers_are_said(run, capsys, tmp_path: Path) -> None:
    model = create_model("digits", pretrained=True)
    torch.nn.init.constant_(model.norm.weight, float("nan"))
    save_model(model, tmp_path)
    assert run("validate", tmp_path, "--limit", "2") == 2
    assert "are its weights numbers?" in capsys.readouterr().err


def test_too_many_images_for_the_memory_are_said(run, capsys) -> None:
    assert run("bench", "digits", "--r", "2", "-b", 10**12) == 2
    assert capsys.readouterr().err.strip().startswith("error: there is not enough memory")


def test_a_picture_that_cannot_be_written_is_said(run, capsys, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "p.png")
    (tmp_path / "out" / "p-tokens.png").mkdir(parents=True)
    assert run("trace", tmp_path / "p.png", "--model", "digits", "-o", tmp_path / "out") == 2
    assert "p-tokens.png cannot be written: Is a directory" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["p-tokens.png"]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"rows": [[]]}', "[]", "no"])
def test_what_holds_no_results_is_said(run, capsys, tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    assert run("report", tmp_path / "rows.json", "-o", tmp_path / "r.html") == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'rows.json'} ")


def test_pictures_of_the_same_name_are_all_kept(run, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / folder / "p.png")
    paths = (tmp_path / "a" / "p.png", tmp_path / "b" / "p.png")
    assert run("trace", "digits", *paths, "--r", "8", "-o", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").glob("*-tokens.png"))) == 2


def test_the_embedded_model_reads_colour_pictures(run, tmp_path: Path) -> None:
    assert run("validate", "digits", "--data-dir", pictures(tmp_path / "data"), "--r", "4") == 0


def test_it_says_its_version(run, capsys) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"vitfold {vitfold.__version__}\n"


def test_families_lists_what_folds_and_what_does_not(run, capsys) -> None:
    assert run("families") == 0
    shown = capsys.readouterr().out
    assert "VisionTransformer" in shown
    assert "swin" in shown.lower()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "vit_tiny_patch16_225"], "vit_tiny_patch16_224"),
        (["bench", "resnet18"], "cannot be folded"),
        (["bench", MODEL, "--method", "tom"], "did you mean 'tome'?"),
        (["bench", MODEL, "--r", "13", "--flops", "0.5"], "both"),
        (["bench", MODEL, "--r", "-3"], "expected 0 or more"),
        (["bench", MODEL, "--r", "many"], "expected 13, or 16,16,8, or 13:-1"),
        (["bench", MODEL, "--flops", "0.01"], "cannot be reached"),
        (["bench", MODEL, "--method-kwargs", "cue=z"], "unknown cue"),
        (["bench", MODEL, "--method-kwargs", "windows=3"], "no option"),
        (["bench", MODEL, "--device", "warp"], "not to be had"),
        (["bench", "x[bold]y"], "unknown model 'x[bold]y'"),
        (["bench", "digits", "--method-kwargs", "cue=[/]"], "unknown cue '[/]'"),
        (["bench", "digits", "--method-kwargs", "cue={[]:1}"], "unknown cue"),
        (["bench", "digits", "--r", "3", "--method-kwargs", "r=4"], "--r 3 and r=4: give one"),
        (
            ["bench", "--img-size", "64", "--model-kwargs", "img_size=32"],
            "--img-size 64 and img_size=32: give one",
        ),
        (["bench", "digits", "--plan", "nowhere", "--r", "3"], "'nowhere' is no directory"),
        (["bench", "digits", "--device", "meta"], "--device 'meta' is not to be had"),
        (["calibrate", "tests", "-o", "tests"], "--output tests is the model"),
        (["bench", "digits", "--r", "99"], "r=99: of 196 patch tokens at most 98"),
        (["bench", "digits", "--method", "LGMT"], "did you mean 'lgtm'?"),
        (
            ["bench", "digits", "--results-file", f"{Path(__file__).parent}/x/y.json"],
            "no directory",
        ),
        (["trace", "digits", "p.png", "--plan", "x" * 5000], "too long"),
        (["validate", "digits", "--data-dir", "x" * 5000], "too long"),
        (["validate", "digits", "--split", "trian"], "the digits are split already"),
        (
            ["bench", "test_vit", "--r", "4", "--img-size", "50", "-b", "1"],
            "images of 50x50",
        ),
        (["demo", "-o", __file__], "--output"),
        (["train", MODEL], "no data: give --data-dir"),
        (["train", MODEL, "--no-val"], "no data: give --data-dir"),
        (["trace", "digits", __file__, "-o", f"{__file__}/deep"], "--output"),
        (["bench", MODEL, "-b", "0"], "expected numbers from 1 up"),
        (["bench", MODEL, "--results-file", "rows.txt"], ".json or .csv"),
        (["bench", "--plan", "nowhere"], "nowhere"),
        (["validate", MODEL, "--no-pretrained", "--r", "2"], "--data-dir"),
        (["validate", MODEL, "--no-pretrained", "--r", "2", "--data-dir", "nowhere"], "nowhere"),
        (["trace", MODEL, "nothing.png", "--no-pretrained", "--r", "2"], "nothing.png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_exit_with_2(run, capsys, arguments, message) -> None:
    assert run(*arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A saved model with thresholds that let images of several contrasts keep other numbers."""
    torch.manual_seed(0)
    fresh = create_model(MODEL, depth=2, embed_dim=48, num_heads=3, img_size=64, num_classes=2)
    method = vitfold.LTMP(flops=0.8, merge_threshold=0.9, prune_threshold=0.03)
    vitfold.save(vitfold.fold(fresh.eval(), method), tmp_path / "trained", backbone=True)
    return tmp_path / "trained"


def test_every_command_takes_a_model_with_learned_thresholds(
    run, capsys, trained: Path, tmp_path: Path
) -> None:
    data = pictures(tmp_path / "data" / "validation")
    where = ["--data-dir", data.parent, "--split", "validation"]
    assert run("validate", trained, *where) == 0
    assert "LTMP(flops=0.8" in capsys.readouterr().out
    assert run("validate", MODEL, "--no-pretrained", "--method", "ltmp", *where) == 0
    assert "nothing is learned yet" in capsys.readouterr().err.replace("\n", " ")
    assert run("bench", trained, *where, "-b", "2", "--repeats", "1", "--warmup", "0") == 0
    assert "free slicing" in capsys.readouterr().out
    assert run("bench", trained) == 2
    assert "give --data-dir" in capsys.readouterr().err
    assert run("bench", trained, *where, "-b", "64") == 2
    assert "6 images are fewer than a batch of 64" in capsys.readouterr().err
    picture = next(data.rglob("*.png"))
    assert run("trace", trained, picture, "--output", tmp_path / "pictures") == 0
    frozen = tmp_path / "frozen"
    assert run("freeze", trained, *where, "--output", frozen) == 0
    assert "frozen" in capsys.readouterr().out
    assert isinstance(fold_of(vitfold.load(frozen)).method, vitfold.MergeDrop)


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_an_embedding_model_is_frozen(run, capsys, tmp_path: Path, library: str) -> None:
    """It has no classes: cosines with the dense model's embeddings are shown."""
    torch.manual_seed(0)
    model = embedder(library)
    method = vitfold.LTMP(flops=0.8, merge_threshold=0.9, prune_threshold=0.03)
    vitfold.save(vitfold.fold(model, method), tmp_path / "learned", backbone=True)
    data = pictures(tmp_path / "data" / "train")
    where = ["--data-dir", data.parent, "--val-split", "train"]
    assert run("freeze", tmp_path / "learned", *where, "-o", tmp_path / "frozen") == 0
    assert "cosine with dense" in capsys.readouterr().out
    assert isinstance(fold_of(vitfold.load(tmp_path / "frozen")).method, vitfold.MergeDrop)


def embedder(library: str) -> torch.nn.Module:
    """A model without a head."""
    if library == "timm":
        fresh = create_model(MODEL, depth=2, embed_dim=48, num_heads=3, img_size=64, num_classes=0)
        return fresh.eval()
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3,
        image_size=64, patch_size=16, projection_dim=32,
    )  # fmt: skip
    return transformers.CLIPVisionModelWithProjection(config).eval()  # type: ignore[no-any-return]


def test_a_search_makes_a_model_for_the_others(run, capsys, tmp_path: Path) -> None:
    torch.manual_seed(0)
    fresh = create_model(MODEL, depth=4, embed_dim=48, num_heads=3, img_size=64, num_classes=2)
    save_model(fresh, tmp_path / "dense")
    data = pictures(tmp_path / "data" / "train")
    request = ["search", tmp_path / "dense", "--data-dir", data.parent, "--flops", "0.8",
             "--iterations", "2", "-b", "3"]  # fmt: skip
    result = tmp_path / "found"
    assert run(*request, "--output", result) == 0
    assert "of the dense FLOPs" in capsys.readouterr().out
    plan = (result / "plan.json").read_bytes()
    assert run(*request, "--output", result, "--resume") == 0
    assert (result / "plan.json").read_bytes() == plan
    where = ["--data-dir", data.parent, "--split", "train"]
    assert run("validate", result, *where) == 0
    assert "PruneMerge(keep=" in capsys.readouterr().out
    assert run("bench", result, "-b", "2", "--repeats", "1", "--warmup", "0") == 0
    shown = capsys.readouterr().out
    assert "free slicing" in shown
    assert "textbook" not in shown
    assert run("trace", result, next(data.rglob("*.png")), "--output", tmp_path / "p") == 0
    assert run(*request, "--output", result, "--grouping", "rings") == 2
    assert "runs or centers" in capsys.readouterr().err
    assert run("bench", MODEL, "--method", "prune-merge") == 2
    assert "vitfold search" in capsys.readouterr().err
    assert run("search", MODEL, "--no-pretrained", "--output", result) == 2
    assert "no data" in capsys.readouterr().err


def test_calibration_makes_a_model_for_the_others(run, capsys, tmp_path: Path) -> None:
    torch.manual_seed(0)
    fresh = create_model(MODEL, depth=4, embed_dim=48, num_heads=3, img_size=64, num_classes=2)
    save_model(fresh, tmp_path / "dense")
    data = pictures(tmp_path / "data" / "train")
    where = ["--data-dir", data.parent, "--split", "train"]
    result = tmp_path / "found"
    request = ["calibrate", tmp_path / "dense", *where, "--output", result]
    assert run(*request, "--flops", "0.8", "--images", "4") == 0
    shown = capsys.readouterr().out
    assert "FLOPs" in shown
    assert "tokens" in shown
    assert run("validate", result, *where) == 0
    assert "WardCut(flops=0.8)" in capsys.readouterr().out
    assert run("bench", result, *where, "-b", "2", "--repeats", "1", "--warmup", "0") == 0
    assert run(*request, "--flops", "0.01") == 2
    assert "cannot be reached" in capsys.readouterr().err
    assert run(*request, "--method-kwargs", "cues=k") == 2
    assert "no option 'cues'" in capsys.readouterr().err
    assert run("bench", MODEL, "--method", "wardcut") == 2
    assert "vitfold calibrate" in capsys.readouterr().err


def test_the_embedded_model_is_searched_on_its_own_digits(run, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    assert run("search", "digits", "--iterations", "1", "-b", "4", "-o", tmp_path / "d") == 0
    assert isinstance(fold_of(vitfold.load(tmp_path / "d")).method, vitfold.PruneMerge)


def test_a_sweep_takes_what_was_trained(run, capsys, trained: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data" / "validation")
    rows = tmp_path / "rows.json"
    model = tmp_path / "dense"
    save_model(vitfold.unfold(vitfold.load(trained)), model)
    arguments = ["sweep", model, "--data-dir", data.parent, "--flops", "0.8", "-b", "2",
                 "--repeats", "1", "--no-baselines", "--results-file", rows]  # fmt: skip
    assert run(*arguments, "--methods", "tome", "--trained", trained) == 0
    result = json.loads(rows.read_text())["rows"]
    assert [row["method"] for row in result] == ["dense", "tome", "ltmp prune_threshold=0.03"]
    assert result[2]["flops"] == 0.8
    assert result[2]["share_b2"] > 0
    twin = tmp_path / "twin"
    shutil.copytree(trained, twin)
    both = ["--methods", "tome", "--trained", trained, "--trained", twin]
    for _ in range(2):
        assert run(*arguments, *both) == 0
        again = json.loads(rows.read_text())["rows"]
        assert again[:3] == result
        assert [row["source"].split()[0] for row in again[2:]] == [str(trained), str(twin)]
    assert run(*arguments, "--overwrite", "--methods", "ltmp") == 2
    assert "vitfold train" in capsys.readouterr().err
    assert run(*arguments, "--overwrite", "--methods", "tome", "--trained", model) == 2
    assert "is not folded" in capsys.readouterr().err


def test_a_group_of_options_stands_for_its_fields() -> None:
    @dataclass(frozen=True)
    class Size(Group):
        panel = "Size"

        height: Annotated[int, option("In pixels.", "--height", "-y")] = 3
        names: Annotated[list[str], option("Of it.")] = field(default_factory=list)

    visits: list[object] = []

    @grouped
    def command(word: str, size: Size, loud: bool = False) -> None:
        """Says what it was given."""
        visits.append((word, size, loud))

    app = typer.Typer()
    app.command()(command)
    runner = CliRunner()
    inputs = ["x", "-y", "5", "--names", "a", "--names", "b", "--loud"]
    assert [runner.invoke(app, printout).exit_code for printout in (inputs, ["y"], [])] == [0, 0, 2]
    assert visits == [("x", Size(5, ["a", "b"]), True), ("y", Size(), False)]
    shown = runner.invoke(app, ["--help"]).output
    assert all(part in shown for part in ("Says what", " Size ", "--height", "-y", "In pixels."))


def test_pictures_are_traced_upright_and_named_apart(run, capsys, tmp_path: Path) -> None:
    """As cameras mark them, and as nobody saw them before: no name is used twice."""
    half = Image.new("RGB", (64, 64), (250, 0, 0))
    half.paste((0, 0, 250), (0, 32, 64, 64))  # red above blue
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned to the right
    (tmp_path / "p").mkdir()
    half.save(tmp_path / "a.jpg", exif=turned)
    for name in ("p/a.png", "a-2.png"):
        half.save(tmp_path / name)
    inputs = [tmp_path / name for name in ("a.jpg", "p/a.png", "a-2.png")]
    request = ("trace", MODEL, *TINY, "--no-pretrained", "--img-size", "64", "--r", "2")
    assert run(*request, *inputs, "-o", tmp_path / "out") == 0
    names = {path.name for path in (tmp_path / "out").glob("*-tokens.png")}
    assert names == {"a-tokens.png", "a-2-tokens.png", "a-2-2-tokens.png"}
    drawn = {name: Image.open(tmp_path / "out" / f"{name}-tokens.png") for name in ("a", "a-2")}
    side = drawn["a"].width
    red, _, blue = drawn["a"].getpixel((side * 3 // 4 + 5, side // 4 + 5))
    assert red > 200 > 50 > blue
    red, _, blue = drawn["a-2"].getpixel((side * 3 // 4 + 5, side // 4 + 5))
    assert red > 200 > 50 > blue
    red, _, blue = drawn["a"].getpixel((side // 4 + 5, side // 4 + 5))
    assert blue > 200 > 50 > red


def test_deep_pictures_are_refused(run, capsys, tmp_path: Path) -> None:
    Image.new("I;16", (32, 32), 9000).save(tmp_path / "deep.png")
    assert run("trace", "digits", tmp_path / "deep.png", "--r", "2") == 2
    assert "more than 8 bits a channel" in capsys.readouterr().err


def test_what_is_made_of_the_embedded_model_has_its_images(run, capsys, tmp_path: Path) -> None:
    fresh, fixed = tmp_path / "cut", tmp_path / "fixed"
    inputs = ("--images", "16", "--flops", "0.8")
    assert run("calibrate", "digits", *inputs, "-o", fresh) == 0
    assert run("freeze", fresh, "-o", fresh, "--images", "16") == 2
    assert "give another directory" in capsys.readouterr().err
    assert run("freeze", fresh, "-o", fixed, "--images", "16", "--limit", "20") == 0
    assert run("validate", fixed, "--limit", "20") == 0
    assert run("freeze", "digits", "-o", tmp_path / "no") == 2
    assert "is not folded" in capsys.readouterr().err


def test_methods_that_take_no_share_say_so(run, capsys) -> None:
    assert run("validate", "digits", "--method", "mergedrop") == 2
    assert "MergeDrop takes r, not flops: give r" in capsys.readouterr().err
