"""A corpus in a bucket: read over the wire by several processes, or refused in one line."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from support import corpora
from support.bucket import bucket
from support.cli import vitfold_

import vitfold
from vitfold.errors import DataError

SMALL: dict[str, Any] = {"shard_size": 4, "batch_size": 2}


def objects(place: Path) -> dict[str, bytes]:
    """Pictures below each other, tars, a table, a list and what is no picture."""
    corpora.folder(place / "in", 5)
    (place / "in" / "class1" / "broken.jpg").write_bytes(b"x")
    corpora.tar(place / "in" / "shards" / "000.tar", 2, first=10)
    corpora.tar(place / "in" / "shards" / "001.tar.gz", 2, first=12, way="gz")
    corpora.table(place / "in" / "a.parquet", {"image": [corpora.encoded(n) for n in (20, 21)]})
    (place / "in" / "notes.csv").write_text("1")
    files = (file for file in (place / "in").rglob("*") if file.is_file())
    return {f"corpus/{file.relative_to(place / 'in')}": file.read_bytes() for file in files}


def test_a_bucket_gives_what_its_folder_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs")
    files = objects(tmp_path)
    files["lists/some.txt"] = b"s3://photographs/corpus/class0/00.jpg\n../corpus/class1/01.jpg\n"
    model = corpora.model()
    local = vitfold.embed(model, tmp_path / "in", tmp_path / "a", workers=0, **SMALL)
    with bucket("photographs", files) as address:
        for name, value in {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)

        def run(source: str, out: str) -> Any:
            return vitfold.embed(model, source, tmp_path / out, workers=2, **SMALL)

        there = run("s3://photographs/corpus", "b")
        assert there.manifest["counts"] == local.manifest["counts"]
        assert numbers(tmp_path / "b") == numbers(tmp_path / "a")
        assert list(corpora.failures(tmp_path / "b")) == ["class1/broken.jpg"]
        assert run("s3://photographs/corpus/shards/{000..000}.tar", "c").rows == 2
        assert run("s3://photographs/corpus/class*/0*.jpg", "d").rows == 5
        assert run("s3://photographs/lists/some.txt", "e").rows == 2
        files["corpus/new.jpg"] = corpora.encoded(30)
        assert run("s3://photographs/corpus", "g").rows == there.rows + 1
        with pytest.raises(DataError, match="there is no such folder or file"):
            run("s3://photographs/nowhere", "f")


def test_a_file_system_of_others_gives_what_its_folder_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = importlib.import_module("fsspec.registry")._registry
    memory = importlib.import_module("fsspec.implementations.memory").MemoryFileSystem

    def stripped(_: Any, path: str) -> str:
        place: str = path.removeprefix("standin:/").strip("/")
        return f"/{place}" if place else ""

    own: dict[str, Any] = {"protocol": "standin", "store": {}, "pseudo_dirs": [""]}
    standin = type("StandIn", (memory,), own | {"_strip_protocol": classmethod(stripped)})
    monkeypatch.setitem(registry, "standin", standin)
    there = standin()
    for name, data in objects(tmp_path).items():
        there.pipe(f"/{name}", data)
    there.pipe("/lists/some.txt", b"standin://corpus/class0/00.jpg\n../corpus/class1/01.jpg\n")
    model = corpora.model()

    def run(source: Any, out: str) -> Any:
        return vitfold.embed(model, source, tmp_path / out, workers=0, **SMALL)

    local, away = run(tmp_path / "in", "a"), run("standin://corpus", "b")
    assert away.manifest["counts"] == local.manifest["counts"]
    assert numbers(tmp_path / "b") == numbers(tmp_path / "a")
    assert list(corpora.failures(tmp_path / "b")) == ["class1/broken.jpg"]
    assert run("standin://lists/some.txt", "c").rows == 2
    assert run("standin://corpus/shards/{000..000}.tar", "d").rows == 2
    with pytest.raises(DataError, match=r"^standin://nowhere: there is no such folder or file$"):
        run("standin://nowhere", "e")


def numbers(place: Path) -> dict[str, tuple[Any, ...]]:
    """The embedding of each image, by its name."""
    return {row["id"]: tuple(row["embedding"]) for row in corpora.rows(place)}


def test_without_its_library_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:

    known = importlib.import_module("fsspec.registry")._registry
    monkeypatch.delitem(known, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    command = ("embed", "digits", "s3://photographs/corpus", "-o", tmp_path / "out")
    assert vitfold_(monkeypatch, *command) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "s3://photographs/corpus" in line
    assert "s3fs" in line


def test_results_go_to_a_directory_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    corpora.folder(tmp_path / "in", 1)
    with pytest.raises(DataError, match="s3://photographs/out is an address"):
        vitfold.embed(corpora.model(), tmp_path / "in", "s3://photographs/out", workers=0)
    assert not (tmp_path / "s3:").exists()
