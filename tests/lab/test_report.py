"""The page of results."""

import json
from pathlib import Path
from typing import Any

import pytest

from vitfold.errors import DataError
from vitfold.lab.report.page import report
from vitfold.tools import results


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


def test_columns_have_headers_with_units(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    row = ROW | {"speedup_b1": 1.5, "flops_share": 0.51, "top1": 0.9642}
    file.write_text(json.dumps({"rows": [row]}))
    page = report([file])
    table = page[page.index("<thead>") : page.index("</table>")]
    for header in ("GFLOPs (2 per MAC)", "images/s, batch 1", "speed, x dense, batch 1", "top-1"):
        assert f"<th>{header}</th>" in table
    assert "96.42%" in table
    assert not any(name in table for name in row if "_" in name)


ENDS = ("", "_low", "_high")


@pytest.mark.parametrize(
    ("held", "caption"),
    [
        (("top1", "agreement", "cosine"), "Accuracy and FLOPs"),
        (("agreement", "cosine"), "Agreement and FLOPs"),
        (("cosine", "dense_cosine"), "Cosine of embeddings and FLOPs"),
        (("dense_cosine",), "Cosine of dense features and FLOPs"),
    ],
)
def test_what_there_is_is_plotted(held: tuple[str, ...], caption: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    row = {name: value for name, value in ROW.items() if not name.startswith("top1")}
    row |= {f"{name}{end}": 0.5 for name in held for end in ENDS}
    file.write_text(json.dumps({"rows": [row]}))
    page = report([file])
    assert [name for name in CAPTIONS if f">{name} and FLOPs<" in page] == [caption[:-10]]


CAPTIONS = ("Accuracy", "Agreement", "Cosine of embeddings", "Cosine of dense features")


def test_columns_are_those_of_all_rows(tmp_path: Path) -> None:
    """Earlier rows of a sweep may have had fewer."""
    row = {name: value for name, value in ROW.items() if name != "counts"}
    for name in ("rows.json", "rows.csv"):
        results.write(tmp_path / name, [row, row | {"cosine": 0.987}], {})
        page = report([tmp_path / name])
        assert "<th>cosine with dense</th>" in page
        assert "<td></td>" in page
        assert "0.987" in page


@pytest.mark.parametrize("steady", [True, False])
def test_a_page_says_when_the_machine_was_busy(steady: bool, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"rows": [ROW | {"steady_b1": steady}]}))
    assert ("the machine was busy" in report([file])) != steady
