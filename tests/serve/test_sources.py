"""Every form that a corpus comes in: all of its images, each by one name."""

import io
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from support import corpora

import vitfold
from vitfold.errors import DataError
from vitfold.serve import source
from vitfold.serve.entries import Entry, beside, read
from vitfold.serve.walking import Walk


def entries(place: object, **options: object) -> list[Entry]:
    return list(source.entries_of(place, Walk(**options)))  # type: ignore[arg-type]


def ids(place: object) -> list[str]:
    return [entry.id for entry in entries(place)]


def test_a_folder_is_all_below_it_in_the_order_of_names(tmp_path: Path) -> None:
    corpora.folder(tmp_path / "in", 7)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "zz").write_bytes(corpora.encoded(1))  # no ending, and a picture
    walk = Walk()
    names = [entry.id for entry in source.entries_of(tmp_path / "in", walk)]
    expected = ["class0/00", "class0/03", "class0/06", "class1/01", "class1/04"]
    expected += ["class2/02", "class2/05"]
    assert names == [*(f"{name}.jpg" for name in expected), "zz"]
    assert walk.skipped == {".txt": 1}


def test_links_are_followed_once(tmp_path: Path) -> None:
    corpora.folder(tmp_path / "other", 3)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "there").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "other" / "again").symlink_to(tmp_path / "other")
    assert len(ids(tmp_path / "in")) == 3


@pytest.mark.skipif(os.name == "nt", reason="names of bytes")
def test_names_that_are_no_text(tmp_path: Path) -> None:
    place = os.fsencode(tmp_path) + b"/in"
    os.mkdir(place)
    Path(os.fsdecode(place + b"/\xff.jpg")).write_bytes(corpora.encoded(1))
    [entry] = entries(tmp_path / "in")
    assert entry.id == "\\xff.jpg"
    assert read(entry) == corpora.encoded(1)


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="root may read everything")
def test_a_folder_that_nobody_may_read_is_a_failure(tmp_path: Path) -> None:
    corpora.folder(tmp_path / "in", 3)
    (tmp_path / "in" / "class1").chmod(0)
    problems = [entry.problem for entry in entries(tmp_path / "in") if entry.problem]
    assert len(problems) == 1


@pytest.mark.parametrize(("name", "way"), [("a.tar", ""), ("a.tar.gz", "gz"), ("a.tgz", "gz")])
def test_members_of_a_tar(tmp_path: Path, name: str, way: str) -> None:
    file = corpora.tar(tmp_path / name, 4, way=way)
    found = entries(file)
    assert [entry.id for entry in found] == [f"{name}/{number}.jpg" for number in range(4)]
    assert [read(entry) for entry in reversed(found)] == [corpora.encoded(n) for n in (3, 2, 1, 0)]


def test_several_tars_by_braces_and_stars(tmp_path: Path) -> None:
    for number in range(3):
        corpora.tar(tmp_path / "in" / f"{number:03d}.tar", 2, first=2 * number)
    expected = [f"{n // 2:03d}.tar/{n}.jpg" for n in range(6)]
    assert ids(tmp_path / "in") == expected
    assert ids(f"{tmp_path}/in/{{000..002}}.tar") == expected
    assert ids(f"{tmp_path}/in/*.tar") == expected
    with pytest.raises(DataError, match="no file matches"):
        ids(f"{tmp_path}/in/*.zip")


def test_a_member_that_comes_twice_has_two_names(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as out:
        for number in range(2):
            member = tarfile.TarInfo("x.jpg")
            member.size = len(corpora.encoded(number))
            out.addfile(member, io.BytesIO(corpora.encoded(number)))
    assert ids(tmp_path / "a.tar") == ["a.tar/x.jpg", "a.tar/x.jpg#2"]


def test_a_damaged_tar_is_not_the_end_of_it(tmp_path: Path) -> None:
    """tarfile takes a broken header for the end, and the rest would be gone without a word."""
    data = bytearray(corpora.tar(tmp_path / "a.tar", 6).read_bytes())
    with tarfile.open(tmp_path / "a.tar") as whole:
        place = whole.getmembers()[4].offset
    data[place : place + 100] = b"x" * 100
    (tmp_path / "a.tar").write_bytes(data)
    found = entries(tmp_path / "a.tar")
    assert [entry.problem is None for entry in found] == [True, True, False]
    (tmp_path / "a.tar").write_bytes(data[: place - 512])  # cut off
    assert [entry.problem is None for entry in entries(tmp_path / "a.tar")][-1] is False
    with pytest.raises(DataError, match="from here on"):
        read(found[-1])


def test_parquet_of_bytes(tmp_path: Path) -> None:
    pictures = [corpora.encoded(number) for number in range(10)]
    file = corpora.table(tmp_path / "a.parquet", {"label": range(10), "image": pictures})
    found = entries(file)
    assert [entry.id for entry in found] == [f"a.parquet/{number}" for number in range(10)]
    assert [read(entry) for entry in found] == pictures


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(corpora.encoded(5))
    cells = [{"bytes": corpora.encoded(1), "path": None}, {"bytes": None, "path": "x.jpg"}, None]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    file = corpora.table(tmp_path / "a.parquet", {"image": pa.array(cells, kind)})
    first, second, third = entries(file)
    assert [read(first), read(second)] == [corpora.encoded(1), corpora.encoded(5)]
    with pytest.raises(DataError, match="is empty"):
        read(third)


def test_parquet_of_paths(tmp_path: Path) -> None:
    corpora.folder(tmp_path, 2)
    paths = ["class0/00.jpg", str(tmp_path / "class1" / "01.jpg"), None]
    file = corpora.table(tmp_path / "a.parquet", {"caption": ["a", "b", "c"], "path": paths})
    first, second, third = entries(file)
    assert [read(first), read(second)] == [corpora.encoded(0), corpora.encoded(1)]
    assert third.problem is not None
    with pytest.raises(DataError, match="no column 'x'"):
        entries(file, column="x")


def test_a_list_of_paths(tmp_path: Path) -> None:
    corpora.folder(tmp_path, 3)
    whole = str(tmp_path / "class1" / "01.jpg")
    lines = ["class0/00.jpg", "", whole, "class0/00.jpg", "class0/00.jpg#2", "not/there.jpg"]
    (tmp_path / "list.txt").write_text("\r\n".join([*lines, "class0/00.jpg"]))
    found = entries(tmp_path / "list.txt")
    names = [entry.id for entry in found]
    assert names[:2] == ["class0/00.jpg", whole]
    assert len(set(names)) == 6
    assert [read(entry) for entry in found[:3]] == [corpora.encoded(n) for n in (0, 1, 0)]
    with pytest.raises(DataError, match=r"not/there.jpg cannot be read: No such file"):
        read(found[4])


def test_a_sequence_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpora.folder(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    found = entries([Path("class0/00.jpg"), str(tmp_path / "class1/01.jpg")])
    assert [read(entry) for entry in found] == [corpora.encoded(0), corpora.encoded(1)]


def test_other_file_systems(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for number in range(3):
        memory.pipe(f"/corpus/{number}.jpg", corpora.encoded(number))
    memory.pipe("/shards/a.tar", corpora.tar(tmp_path / "a.tar", 2).read_bytes())
    memory.pipe("/shards/list.txt", b"memory://corpus/1.jpg\n../corpus/2.jpg")
    found = entries("memory://corpus")
    assert [entry.id for entry in found] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [read(entry) for entry in found] == [corpora.encoded(number) for number in range(3)]
    assert [read(entry) for entry in entries("memory://shards/a.tar")] == [
        corpora.encoded(0),
        corpora.encoded(1),
    ]
    assert read(entries("memory://shards/list.txt")[0]) == corpora.encoded(1)


def test_a_chain_of_file_systems(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        for number in range(2):
            out.writestr(f"in/{number}.jpg", corpora.encoded(number))
    found = entries(f"zip://in::{tmp_path}/a.zip")
    assert [entry.id for entry in found] == ["0.jpg", "1.jpg"]
    assert [read(entry) for entry in found] == [corpora.encoded(0), corpora.encoded(1)]


@pytest.mark.parametrize(
    ("file", "path", "there"),
    [
        (b"/a/list.txt", "../b/x.jpg", b"/b/x.jpg"),
        (b"/a/list.txt", "/c/x.jpg", b"/c/x.jpg"),
        (b"s3://bucket/a/list.txt", "../b/./x.jpg", b"s3://bucket/b/x.jpg"),
        (b"s3://bucket/a/list.txt", "/c/x.jpg", b"/c/x.jpg"),
        (b"s3://bucket/a/list.txt", "gs://other/x.jpg", b"gs://other/x.jpg"),
        (b"zip://in/list.txt::/d/a.zip", "x.jpg", b"zip://in/x.jpg::/d/a.zip"),
        (b"zip://list.txt::s3://bucket/a.zip", "x.jpg", b"zip://x.jpg::s3://bucket/a.zip"),
    ],
)
def test_a_path_in_a_file_begins_in_its_folder(file: bytes, path: str, there: bytes) -> None:
    assert beside(file, path) == there


def test_what_is_no_source_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder or file"):
        entries(tmp_path / "none")
    with pytest.raises(DataError, match="cannot be opened"):
        entries("nothing://x")
    (tmp_path / "a.csv").write_text("1")
    model = corpora.model()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("1")
    (tmp_path / "own").mkdir()
    for out in ("away/out", "own"):
        with pytest.raises(DataError, match=r"there are no images, but other files: 1 \.csv"):
            vitfold.embed(model, tmp_path / "in", tmp_path / out, workers=0)
    assert not (tmp_path / "away").exists()  # what was made for it is gone
    assert not list((tmp_path / "own").iterdir())
