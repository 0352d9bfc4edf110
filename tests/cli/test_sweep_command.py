"""`vitfold sweep` and the page of `vitfold report`, as people run them."""

import json
from pathlib import Path

import pytest
import torch
from support.cli import SMALL, pictures, vitfold_

from vitfold.cli import show, values
from vitfold.errors import MethodError
from vitfold.lab.styles import AT_RANDOM, BASELINES
from vitfold.tools import results


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return pictures(tmp_path / "data", classes=2, each=3)


ASKED = ["--methods", "tome,lgtm", "--flops", "0.8", "-b", "1", "--repeats", "1"]


def test_a_sweep_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    file = tmp_path / "rows.json"
    arguments = ["sweep", *SMALL, "--data-dir", data, *ASKED, "--results-file", file]
    assert vitfold_(monkeypatch, *map(str, arguments)) == 0
    assert "baseline: dropping at random" in capsys.readouterr().out
    whole = json.loads(file.read_text())
    assert [row["method"] for row in whole["rows"]] == ["dense", "tome", "lgtm", *BASELINES]
    assert set(whole["pictures"]) == {"tome", "lgtm", AT_RANDOM}
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
    assert len(results.read(csv)["rows"]) == 5
    lines = csv.read_text().splitlines(keepends=True)
    csv.write_text("".join(lines[:3]))
    assert vitfold_(monkeypatch, *map(str, [*arguments[:-1], csv])) == 0
    assert csv.read_text().splitlines(keepends=True)[:3] == lines[:3]
    assert len(results.read(csv)["rows"]) == 5
    assert vitfold_(monkeypatch, *map(str, [*arguments[:-1], csv, "--limit", "3"])) == 2
    assert "rows of another model" in capsys.readouterr().err
    csv.write_text("a,b\n1,2\n")
    assert vitfold_(monkeypatch, *map(str, [*arguments[:-1], csv])) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_sweep_is_of_one_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    file, new = tmp_path / "rows.json", "depth=2 embed_dim=48 num_heads=3 num_classes=2"
    request = ["sweep", "vit_tiny_patch16_224", "--no-pretrained", "--img-size", "64",
             "--data-dir", str(data), *ASKED, "--results-file", str(file)]  # fmt: skip
    assert vitfold_(monkeypatch, *request, "--model-kwargs", *new.split()) == 0
    before = file.read_text()
    assert vitfold_(monkeypatch, *request, "--model-kwargs", new) == 0
    assert file.read_text() == before
    assert vitfold_(monkeypatch, *request, "--model-kwargs", new.replace("48", "96")) == 2
    assert "arguments=" in capsys.readouterr().err


BESIDE = ("cosine", "recall1", "recall10", "kl")


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_a_sweep_goes_on_from_rows_without_fidelity(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, suffix: str
) -> None:
    """As those written before rows had it."""
    file, page = tmp_path / f"rows{suffix}", tmp_path / "page.html"
    arguments = ["sweep", *SMALL, "--data-dir", data, *ASKED, "--results-file", file]
    assert vitfold_(monkeypatch, *map(str, arguments)) == 0
    whole = results.read(file)
    assert {"cosine_low", "cosine_worst", "kl_high", "agreement_low"} <= set(whole["rows"][0])
    before = [
        {k: v for k, v in row.items() if not k.startswith((*BESIDE, "agreement_"))}
        for row in whole["rows"][:2]
    ]
    results.write(file, before, {k: v for k, v in whole.items() if k != "rows"})
    assert vitfold_(monkeypatch, "report", str(file), "-o", str(page)) == 0
    assert "cosine with dense" not in page.read_text()
    assert vitfold_(monkeypatch, *map(str, arguments)) == 0
    after = results.read(file)["rows"]
    assert [row["method"] for row in after] == [row["method"] for row in whole["rows"]]
    assert [row.get("cosine") or None for row in after[:2]] == [None, None]
    assert after[2]["cosine"] == whole["rows"][2]["cosine"]
    assert vitfold_(monkeypatch, "report", str(file), "-o", str(page)) == 0
    text = page.read_text()
    assert "<th>cosine with dense</th>" in text
    assert "Accuracy and FLOPs" in text


@pytest.mark.parametrize("head", [True, False])
def test_a_sweep_of_photographs_needs_no_labels(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    head: bool,
) -> None:
    monkeypatch.setattr(show.console, "width", 200)
    photos = pictures(tmp_path / "data", classes=1, each=12) / "class0"
    file, page = tmp_path / "rows.json", tmp_path / "page.html"
    request = ["sweep", "test_vit", "--no-pretrained", "--data-dir", str(photos), *ASKED,
               "--methods", "tome", "--results-file", str(file)]  # fmt: skip
    if head:
        assert vitfold_(monkeypatch, *request) == 2
        assert "no folders of classes" in capsys.readouterr().err
    request += ["--fidelity"] if head else ["--model-kwargs", "num_classes=0"]
    assert vitfold_(monkeypatch, *request) == 0
    shown = capsys.readouterr().out
    assert "top-1" not in shown
    assert "recall@10" in shown
    assert ("agrees with dense" in shown) == head
    dense, tome, *_ = json.loads(file.read_text())["rows"]
    assert "top1" not in tome
    assert (dense["images"], dense["cosine"]) == (12, pytest.approx(1))
    assert tome["cosine_low"] <= tome["cosine"] < 1
    assert vitfold_(monkeypatch, "report", str(file), "-o", str(page)) == 0
    wanted = "Agreement and FLOPs" if head else "Cosine of embeddings and FLOPs"
    assert wanted in page.read_text()
    assert page.read_text().count("<svg") == 3


def test_rows_with_labels_and_without_do_not_mix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    request = ["sweep", *SMALL, "--data-dir", str(data), *ASKED, "--no-baselines"]
    for first, then in (([], ["--fidelity"]), (["--fidelity"], [])):
        for name in ("rows.json", "rows.csv"):
            file = ["--results-file", str(tmp_path / f"{len(first)}-{name}")]
            assert vitfold_(monkeypatch, *request, *file, *first) == 0
            assert vitfold_(monkeypatch, *request, *file, *then) == 2
            assert "--overwrite" in capsys.readouterr().err


def test_the_page_stands_alone(monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path) -> None:
    file, page = tmp_path / "rows.json", tmp_path / "page.html"
    arguments = ["sweep", *SMALL, "--data-dir", data, *ASKED, "--results-file", file]
    assert vitfold_(monkeypatch, *map(str, arguments)) == 0
    assert vitfold_(monkeypatch, "report", str(file), "-o", str(page)) == 0
    text = page.read_text()
    assert text.count("<svg") == 3
    assert "data:image/png;base64," in text
    for word in ('src="http', "<script", 'href="http', "@import"):
        assert word not in text
    assert torch.__version__ in text


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
