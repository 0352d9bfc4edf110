"""The notebooks run as they stand there, without a network, and what they show is small."""

import sys
from pathlib import Path
from typing import Any

import pytest

import vitfold

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(__file__).parent.parent

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

LARGEST = 300_000


def cells(path: Path) -> list[Any]:
    notebook = nbformat.read(path, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> list[str]:
    """What a cell shows, warnings aside; what it prints is one, in however many pieces it came."""
    outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    every = ["image" if "image/png" in out.get("data", {}) else out.output_type for out in outputs]
    return [k for i, k in enumerate(every) if k != "stream" or every[i - 1 : i] != [k]]


@every_notebook
def test_a_notebook_runs_and_shows_what_it_has_shown(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(vitfold.__file__).parents[1]))
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    run = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [kinds(cell) for cell in run] == [kinds(cell) for cell in cells(path)]


@every_notebook
def test_what_is_kept_of_a_notebook_is_whole_and_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text) < LARGEST
    assert "image/jpeg" not in text
    for place in ("site-packages", str(ROOT), sys.prefix, '"stderr"', '"error"'):
        assert place not in text, place
    counts = [cell.execution_count for cell in cells(path)]
    assert counts == [*range(1, len(counts) + 1)], "run it with scripts/run_notebooks.py"


@every_notebook
def test_a_notebook_begins_with_what_a_reader_chooses(path: Path) -> None:
    assert cells(path)[0].source.startswith("MODEL = ")


def test_the_pages_lead_to_every_notebook() -> None:
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        assert f"](../notebooks/{path.name})" in page
