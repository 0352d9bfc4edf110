"""What the site makes of the measurements."""

import csv
import importlib.util
import io
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.pages import mkdocs

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "scripts" / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    files = sorted((ROOT / "benchmarks").glob("*.json"))
    return {file.stem: json.loads(file.read_text("utf-8")) for file in files}


def test_every_row_stands_at_one_place(hooks: ModuleType, measured: dict[str, Any]) -> None:
    groups = hooks.by_place(measured)
    rows = [id(row) for found in groups.values() for each in found.values() for row in each]
    assert sorted(rows) == sorted(id(row) for result in measured.values() for row in result["rows"])
    names = [hooks.csv_name(place) for place in groups]
    assert len(set(names)) == len(names)
    assert {place[1:] for place in groups} >= {("float32", "eager"), ("INT8", "openvino")}


@pytest.mark.parametrize(
    ("row", "place"),
    [
        ({}, ("float32", "eager")),
        ({"runtime": "openvino", "int8": True}, ("INT8", "openvino")),
        ({"runtime": "openvino", "case": "x, batch 8, INT8"}, ("INT8", "openvino")),
        (
            {"runtime": "openvino", "case": "x, INT8", "candidate": "dense, float32"},
            ("float32", "openvino"),
        ),
        ({"runtime": "openvino", "candidate": "dense, eager torch"}, ("float32", "eager")),
    ],
)
def test_where_a_row_was_measured(
    hooks: ModuleType, row: dict[str, Any], place: tuple[str, str]
) -> None:
    assert hooks.precision_and_runtime(row) == place


@pytest.mark.parametrize("broken", ["gone.md", "index.md#gone"])
def test_a_broken_link_stops_what_make_runs(broken: str, tmp_path: Path) -> None:
    [recipe] = re.findall(r"mkdocs (build .*)", (ROOT / "Makefile").read_text("utf-8"))
    hooks = tmp_path / "scripts"
    hooks.mkdir()
    (hooks / "site_hooks.py").write_text("")
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(f"# Start\n\n[there]({broken})\n")
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    (tmp_path / "mkdocs.yml").write_text(text.partition("\nnav:")[0] + "\nnav: [index.md]\n")
    built = mkdocs(*recipe.split(), place=tmp_path)
    assert built.returncode == 1, built.stderr
    assert "gone" in built.stderr


def test_what_holds_for_all_rows_of_a_benchmark_says_where(hooks: ModuleType) -> None:
    machine = {"gpu": "H", "processor": "x", "threads": 1}
    result = {"machine": machine, "dtype": "bfloat16", "runtime": "compile", "rows": [{"ms": 1.0}]}
    assert list(hooks.by_place({"speed": result})) == [("H", "bfloat16", "compile")]


def test_files_have_a_column_for_every_number(hooks: ModuleType) -> None:
    rows = [{"a": "x, y", "ms": [1.0, 2.0, 3.0]}, {"a": "z", "more": {"b": 1}, "n": 4}]
    [first, second] = csv.DictReader(io.StringIO(hooks.as_csv(hooks.flat(rows))))
    assert first == {"a": "x, y", "ms": "2.0", "ms low": "1.0", "ms high": "3.0", "n": ""}
    assert second == {"a": "z", "ms": "", "ms low": "", "ms high": "", "n": "4"}


def test_the_page_has_a_table_for_each_benchmark(hooks: ModuleType, measured: Any) -> None:
    groups = hooks.by_place(measured)
    page = hooks.overview(groups, measured)
    for place, benchmarks in groups.items():
        assert f"]({hooks.csv_name(place)})" in page
        for name in benchmarks:
            assert f"]({name}.md)" in page
    tables = list(hooks.tables(page))
    assert len(tables) == sum(len(benchmarks) for benchmarks in groups.values())
    assert all(len(row) == len(table[0]) for table in tables for row in table)
