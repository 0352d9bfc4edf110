"""`vitfold analyze`, as people run it."""

from pathlib import Path

import pytest
from support.cli import SMALL, pictures, vitfold_

from vitfold.tools import results


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return pictures(tmp_path / "data", classes=2, each=3)


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
    arguments = ["analyze", "sharpness", *SMALL, "--data-dir", data, "--limit", "2",
                 "--tolerance", "0.2", "--flops", "0.8"]  # fmt: skip
    assert vitfold_(monkeypatch, *map(str, arguments)) == 0
    assert "largest eigenvalue" in capsys.readouterr().out


def test_a_plot_of_no_known_kind_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vitfold_(monkeypatch, "analyze", "positions", "digits", "-o", "plot.bmp") == 2
    assert "expected .png, .svg or .pdf" in capsys.readouterr().err
