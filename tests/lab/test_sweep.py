"""Many folds on the same images, the page that shows them, and looking into models."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from support.cli import pictures, vitfold_
from support.models import images, registered
from torch import Tensor, nn

import vitfold
from vitfold.cli import values
from vitfold.errors import DataError, MethodError, UnsupportedModel
from vitfold.lab.analysis import merged_similarity, position_similarity, sharpness, token_similarity
from vitfold.lab.analysis.similarity import mean_cosine
from vitfold.lab.report import report
from vitfold.lab.sweep import (
    SMALLER_INPUT,
    candidates,
    gigaflops,
    smaller_inputs,
    smaller_models,
    sweep,
    trained,
)
from vitfold.tools import results
from vitfold.tools.validate import Predictions, predict, score


def labelled(model: nn.Module, count: int = 2) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(4)
    return [(images(model, 3), torch.randint(0, 1000, (3,))) for _ in range(count)]


def swept(model: nn.Module, asked: list[Any], **options: Any) -> list[Any]:
    batches = labelled(model)
    return [
        row for row, _ in sweep(model, asked, lambda: batches, sizes=(2,), repeats=1, **options)
    ]


def test_rows_hold_what_each_candidate_comes_to() -> None:
    model = registered("vit_tiny_patch16_224", depth=3)
    rows = swept(model, candidates(model, ["tome", "drop"], [0.8, 0.7]))
    assert [row.method for row in rows] == ["dense", "tome", "tome", "drop", "drop"]
    dense = rows[0]
    assert dense.report.agreement == 1.0
    assert dense.changed == []
    assert dense.counts == [26, 26, 26]
    for row in rows[1:]:
        assert row.gflops / dense.gflops == pytest.approx(row.flops, abs=0.03)
        assert row.counts[-1] < 26
        assert len(row.changed) == round(6 * (1 - row.report.agreement))
        [speed] = row.speeds
        assert speed.share is not None
        assert {"share_b2", "speedup_b2", "top1_low", "changed"} <= set(row.to_json())


def test_a_share_out_of_reach_is_skipped_in_words() -> None:
    model = registered("vit_tiny_patch16_224", depth=2)
    said: list[str] = []
    rows = swept(model, candidates(model, ["dfe"], [0.05, 0.9]), skip=said.append)
    assert [row.flops for row in rows] == [1.0, 0.9]
    assert "dfe at 0.05" in said[0]


def test_smaller_images_cost_about_what_is_asked() -> None:
    model = registered("vit_tiny_patch16_224", depth=3)
    rows = swept(model, [*candidates(model, [], []), *smaller_inputs(model, [0.6, 0.3])])
    dense, more, less = rows
    assert {more.method, less.method} == {SMALLER_INPUT}
    assert dense.gflops > more.gflops > less.gflops
    assert more.gflops / dense.gflops == pytest.approx(0.6, abs=0.2)
    assert less.detail.endswith("px")
    assert model.patch_embed.grid_size == (5, 5)


def test_making_smaller_inputs_leaves_the_model_as_it_was() -> None:
    model = registered("vit_tiny_patch16_224", depth=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made: Any = smaller_inputs(model, [0.6, 0.3])[1].make()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.pos_embed.shape == before["pos_embed"].shape
    assert made.model.patch_embed.proj.weight is model.patch_embed.proj.weight


def test_smaller_models_stand_beside() -> None:
    model = registered("vit_tiny_patch16_224", depth=3)
    other = registered("vit_tiny_patch16_224", depth=1)
    rows = swept(model, smaller_models({"one block": lambda: other}))
    assert rows[0].method == "smaller model one block"
    assert rows[0].gflops < 0.5 * swept(model, candidates(model, [], []))[0].gflops


def test_costs_that_depend_on_images_are_those_of_all_of_them() -> None:
    """Folders list one class after another."""
    model = vitfold.fold(registered("vit_tiny_patch16_224", depth=3), vitfold.WardCut(flops=0.7))
    x = images(model, 96)
    x[:48] *= 0.01  # one colour, in which all tokens merge
    vitfold.calibrate(model, x)
    batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in x.split(40)]
    [(row, _)] = sweep(
        vitfold.unfold(copy.deepcopy(model)), trained({"cut": model}), lambda: batches,
        sizes=(2,), repeats=1,
    )  # fmt: skip
    dense = gigaflops(vitfold.unfold(copy.deepcopy(model)), x[:2])
    assert row.gflops / dense == pytest.approx(0.7, abs=0.05)


def test_what_a_search_found_is_no_name() -> None:
    model = registered("vit_tiny_patch16_224", depth=4)
    batches = [(images(model, 4), torch.arange(4)) for _ in range(2)]
    found = vitfold.PruneMerge.search(model, batches, keep=0.7, iterations=2)
    [candidate] = trained({"found": vitfold.fold(model, found)})
    assert len(candidate.method) < 100


@pytest.mark.parametrize(
    "method",
    [vitfold.ToMe(r=3), vitfold.ToMe(r=(3, -0.5)), vitfold.MergeDrop(r=2, drop=1)],
    ids=str,
)
def test_models_folded_by_numbers_are_candidates(method: vitfold.Method) -> None:
    [candidate] = trained({"run": vitfold.fold(registered("vit_tiny_patch16_224"), method)})
    assert candidate.method.startswith(f"{method.name} r=")


def test_predictions_are_counted_by_hand() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    ours = Predictions(labels, torch.tensor([[0, 1], [0, 1], [2, 0], [0, 1]]))
    dense = Predictions(labels, torch.tensor([[0, 1], [1, 0], [0, 2], [0, 1]]))
    found = score(ours, dense)
    assert (found.top1, found.top5, found.dense_top1, found.agreement) == (0.5, 0.75, 0.5, 0.5)


def test_predict_says_what_the_model_says() -> None:
    model = registered("vit_tiny_patch16_224", depth=2).eval()
    batches = labelled(model)
    found = predict(model, batches)
    with torch.no_grad():
        expected = torch.cat([model(pixels).argmax(1) for pixels, _ in batches])
    assert torch.equal(found.best[:, 0], expected)


# The commands


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return pictures(tmp_path / "data", classes=2, each=3)


ASKED = ["--methods", "tome,lgtm", "--flops", "0.8", "-b", "1", "--repeats", "1"]


def test_a_sweep_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    file = tmp_path / "rows.json"
    arguments = ["sweep", "digits", "--data-dir", data, *ASKED, "--results-file", file]
    assert vitfold_(monkeypatch, *map(str, arguments)) == 0
    assert "smaller input" in capsys.readouterr().out
    whole = json.loads(file.read_text())
    assert [row["method"] for row in whole["rows"]] == ["dense", "tome", "lgtm", SMALLER_INPUT]
    assert set(whole["pictures"]) == {"tome", "lgtm"}
    results.write(file, whole["rows"][:2], {k: v for k, v in whole.items() if k != "rows"})
    assert vitfold_(monkeypatch, *map(str, arguments)) == 0
    again = json.loads(file.read_text())["rows"]
    assert again[:2] == whole["rows"][:2]
    for before, after in zip(whole["rows"], again, strict=True):
        for name in ("top1", "agreement", "gflops", "counts", "changed"):
            assert before[name] == after[name]
    arguments[-3] = "2"
    assert vitfold_(monkeypatch, *map(str, [*arguments, "--limit", "3"])) == 2
    assert "--overwrite" in capsys.readouterr().err
    csv = tmp_path / "rows.csv"
    assert vitfold_(monkeypatch, *map(str, [*arguments[:-1], csv])) == 0
    assert len(results.read(csv)["rows"]) == 4
    lines = csv.read_text().splitlines(keepends=True)
    csv.write_text("".join(lines[:3]))
    assert vitfold_(monkeypatch, *map(str, [*arguments[:-1], csv])) == 0
    assert csv.read_text().splitlines(keepends=True)[:3] == lines[:3]
    assert len(results.read(csv)["rows"]) == 4
    assert vitfold_(monkeypatch, *map(str, [*arguments[:-1], csv, "--limit", "3"])) == 2
    assert "rows of another model" in capsys.readouterr().err
    csv.write_text("a,b\n1,2\n")
    assert vitfold_(monkeypatch, *map(str, [*arguments[:-1], csv])) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_sweep_is_of_one_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    file, made = tmp_path / "rows.json", "depth=2 embed_dim=48 num_heads=3 num_classes=2"
    asked = ["sweep", "vit_tiny_patch16_224", "--no-pretrained", "--img-size", "64",
             "--data-dir", str(data), *ASKED, "--results-file", str(file)]  # fmt: skip
    assert vitfold_(monkeypatch, *asked, "--model-kwargs", *made.split()) == 0
    before = file.read_text()
    assert vitfold_(monkeypatch, *asked, "--model-kwargs", made) == 0
    assert file.read_text() == before
    assert vitfold_(monkeypatch, *asked, "--model-kwargs", made.replace("48", "96")) == 2
    assert "arguments=" in capsys.readouterr().err


def test_the_page_stands_alone(monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path) -> None:
    file, page = tmp_path / "rows.json", tmp_path / "page.html"
    arguments = ["sweep", "digits", "--data-dir", data, *ASKED, "--results-file", file]
    assert vitfold_(monkeypatch, *map(str, arguments)) == 0
    assert vitfold_(monkeypatch, "report", str(file), "-o", str(page)) == 0
    text = page.read_text()
    assert text.count("<svg") == 3
    assert "data:image/png;base64," in text
    for word in ('src="http', "<script", 'href="http', "@import"):
        assert word not in text
    assert torch.__version__ in text


def test_a_page_shows_names_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    results.write(file, [{"method": "<b>", "value": 1.0}], {"command": "bench", "model": "<i>"})
    text = report([file])
    assert "<b>" not in text
    assert "&lt;b&gt;" in text
    file.write_text("[1]")
    with pytest.raises(DataError, match="holds no results"):
        report([file])


ROW = {"method": "tome", "flops": 0.5, "top1": 0.5, "top1_low": 0.4, "top1_high": 0.6,
       "gflops": 1.0, "images_per_second_b1": 9.0, "counts": [3, 2]}  # fmt: skip


@pytest.mark.parametrize(
    "held",
    [
        {"rows": [1, 2]},
        {"rows": [{k: v for k, v in ROW.items() if k != "method"}]},
        {"rows": [ROW | {"top1": "abc"}]},
        {"rows": [ROW | {"flops": None}]},
        {"rows": [ROW], "pictures": {"a": None}},
        {"rows": [ROW], "pictures": [1]},
    ],
    ids=str,
)
def test_a_file_that_is_broken_is_named(held: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(held))
    with pytest.raises(DataError, match=r"rows\.json holds"):
        report([file])


def test_figures_that_are_missing_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    short = dict.fromkeys(ROW) | {"method": "lgtm", "flops": 0.5}
    file.write_text(json.dumps({"rows": [ROW, short]}))
    assert report([file]).count("<svg") == 3


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("0.9,0.6", [0.9, 0.6]),
        ("0.9..0.4", [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]),
        ("0.5..0.6:0.05", [0.5, 0.55, 0.6]),
        ("1", [1.0]),
    ],
)
def test_shares_are_a_list_or_a_range(text: str, shares: list[float]) -> None:
    assert values.shares(text) == pytest.approx(shares)


@pytest.mark.parametrize("text", ["", "0", "1.2", "a..b", "0.9..0.4:0", "0.9..-1"])
def test_shares_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(MethodError, match="expected shares"):
        values.shares(text)


# Looking into models


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    x = torch.randn(2, 5, 7)
    for image, found in zip(x, mean_cosine(x), strict=True):
        pairs = [F.cosine_similarity(image[i], image[j], dim=0)
                 for i in range(5) for j in range(5) if i != j]  # fmt: skip
        assert float(found) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_similarities_are_those_of_the_dense_blocks(name: str) -> None:
    model = registered(name).eval()
    batches = labelled(model)
    found = token_similarity(model, batches)
    caught: list[list[Tensor]] = [[] for _ in model.blocks]
    for store, block in zip(caught, model.blocks, strict=True):
        block.register_forward_pre_hook(lambda _, given, store=store: store.append(given[0]))
    with torch.no_grad():
        for pixels, _ in batches:
            model(pixels)
    for store, value in zip(caught, found.before, strict=True):
        assert value == pytest.approx(float(mean_cosine(torch.cat(store)).mean()), abs=1e-6)
    assert found.inside != found.after


def test_merged_pairs_grow_less_alike_as_more_merge() -> None:
    model = registered("vit_tiny_patch16_224", depth=3).eval()
    found = merged_similarity(model, labelled(model), [1, 4, 6], "dfe", {"skip": 1})
    for means in found.values():
        assert means[0] is None
    firsts = [found[r][1] for r in (1, 4, 6)]
    assert firsts == sorted(firsts, reverse=True)
    assert "_vitfold" not in vars(model)


def test_sharpness_is_the_largest_eigenvalue() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=16, embed_dim=6, num_heads=2, depth=2,
        mlp_ratio=1, num_classes=2,
    ).double()  # fmt: skip
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith("blocks.0.attn"))
    pixels, labels = torch.randn(4, 3, 32, 32).double(), torch.tensor([0, 1, 0, 1])
    weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([w.numel() for w in weights.values()])
        given = {n: part.view_as(w) for (n, w), part in zip(weights.items(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, given, pixels), labels)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        flat = torch.cat([w.flatten() for w in weights.values()])
        hessian = torch.autograd.functional.hessian(loss, flat)
    expected = float(torch.linalg.eigvalsh(hessian)[-1])
    with pytest.raises(DataError, match="tolerance=nan"):
        sharpness(model, [(pixels, labels)], float("nan"))
    assert sharpness(model.eval(), [(pixels, labels)], 1e-4) == pytest.approx(expected, rel=1e-2)
    vitfold.fold(model, "tome", r=1)
    assert sharpness(model, [(pixels, labels)], 1e-2) != pytest.approx(expected, rel=1e-6)


def test_positions_are_compared_where_there_are_any() -> None:
    found = position_similarity(vitfold.create_model("digits"))
    assert found.shape == (14, 14, 14, 14)
    torch.testing.assert_close(found[3, 4, 3, 4], torch.tensor(1.0))
    with pytest.raises(UnsupportedModel, match="its positions lie in attention"):
        position_similarity(registered("vit_base_patch16_rope_mixed_224"))


@pytest.mark.parametrize("method", ["evit", "mergedrop", "drop", "ward"])
def test_pairs_of_other_methods(method: str) -> None:
    model = registered("vit_tiny_patch16_224", depth=3).eval()
    options = {"blocks": (1,)} if method == "evit" else {}
    [found] = merged_similarity(model, labelled(model), [2], method, options).values()
    merges = method != "drop"
    assert any(value is not None for value in found) == merges
    with pytest.raises(MethodError, match="give a method that merges"):
        merged_similarity(model, labelled(model), [2], "dynamicvit")


@pytest.mark.parametrize("what", ["similarity", "merged-similarity", "positions"])
def test_analyses_draw_and_write(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, what: str
) -> None:
    plot, file = tmp_path / "plot.png", tmp_path / "rows.json"
    more = [] if what == "positions" else ["--data-dir", data, "--results-file", file]
    arguments = ["analyze", what, "digits", *more, "-o", plot]
    assert vitfold_(monkeypatch, *map(str, arguments)) == 0
    assert plot.stat().st_size > 1000
    if more:
        assert len(results.read(file)["rows"]) == 12


def test_the_command_compares_sharpness(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["analyze", "sharpness", "digits", "--data-dir", data, "--limit", "2",
                 "--tolerance", "0.2", "--flops", "0.8"]  # fmt: skip
    assert vitfold_(monkeypatch, *map(str, arguments)) == 0
    assert "largest eigenvalue" in capsys.readouterr().out


def test_a_plot_of_no_known_kind_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vitfold_(monkeypatch, "analyze", "positions", "digits", "-o", "plot.bmp") == 2
    assert "expected .png, .svg or .pdf" in capsys.readouterr().err
