"""What is kept of an export is there whole, whatever happens in the middle."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vitfold import files
from vitfold.files import whole_directory

ROOT = Path(__file__).parents[2]


def killed(code: str) -> None:
    """Run some code that kills itself."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()


def content(place: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in place.iterdir()}


def earlier(tmp_path: Path) -> Path:
    place = tmp_path / "out"
    place.mkdir()
    (place / "old").write_text("1")
    return place


KILLS = {
    "as files are written": ("os.kill(os.getpid(), 9)", {"old": "1"}),
    "before they are in their place": (
        "files._exchange = files._replace = lambda *_: os.kill(os.getpid(), 9)",
        {"old": "1"},
    ),
    "after it": ("shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), 9)", {"new": "2"}),
}


@pytest.mark.parametrize("moment", KILLS)
@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_kill_leaves_all_or_nothing(moment: str, tmp_path: Path) -> None:
    line, expected = KILLS[moment]
    place = earlier(tmp_path)
    killed(
        f"import os, pathlib, shutil\nfrom vitfold import files\n"
        f"with files.whole_directory(pathlib.Path({str(place)!r})) as part:\n"
        f"    (part / 'new').write_text('2')\n    {line}\n"
    )
    assert content(place) == expected
    with whole_directory(place) as part:
        (part / "third").write_text("3")
    assert content(place) == {"third": "3"}


def test_what_was_left_long_ago_goes_and_what_others_write_stays(tmp_path: Path) -> None:
    place = earlier(tmp_path)
    old, recent, other = (tmp_path / name for name in (".out.0123abcd", ".out.01234567", ".out.x"))
    for directory in (old, recent, other):
        directory.mkdir()
        (directory / "some").write_text("")
    for directory in (old, other):
        os.utime(directory, (0, 0))
    with whole_directory(place):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"out", recent.name, other.name}


def test_what_a_kill_left_beside_comes_back(tmp_path: Path) -> None:
    """Of the two steps that other systems need, the first was taken."""
    place = tmp_path / "out"
    first, second = (tmp_path / f".out.0123456{n}.before" for n in range(2))
    earlier(tmp_path).rename(first)
    os.utime(first, (0, 0))
    with pytest.raises(KeyError), whole_directory(place):
        {}["something else goes wrong"]
    assert content(place) == {"old": "1"}
    second.mkdir()
    os.utime(second, (0, 0))
    with whole_directory(place) as part:
        (part / "new").write_text("2")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_errors_leave_what_was_there(
    exchanges: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    place = earlier(tmp_path)
    with pytest.raises(KeyError), whole_directory(place) as part:
        {}[(part / "new").write_text("2")]
    assert content(place) == {"old": "1"}
    with whole_directory(place) as part:
        (part / "new").write_text("2")
    assert content(place) == {"new": "2"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_to_a_directory_stays_one(tmp_path: Path) -> None:
    place = earlier(tmp_path)
    (tmp_path / "link").symlink_to(place)
    with whole_directory(tmp_path / "link") as part:
        (part / "new").write_text("2")
    assert (tmp_path / "link").is_symlink()
    assert content(place) == {"new": "2"}
    assert {path.name for path in tmp_path.iterdir()} == {"out", "link"}


def test_two_directories_change_places_at_once(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux has one step for it")
    place, other = earlier(tmp_path), tmp_path / "other"
    other.mkdir()
    if not files._exchange(other, place):
        pytest.skip("this file system has no such step")
    assert content(other) == {"old": "1"}
    assert content(place) == {}
    assert not files._exchange(tmp_path / "nowhere", place)


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_an_export_that_is_killed_leaves_the_one_before(tmp_path: Path) -> None:
    place = tmp_path / "out"
    script = (
        "import os, shutil, vitfold\nfrom support.small import vit\n"
        "def export(r):\n"
        f"    model = vitfold.fold(vit(depth=2).float(), 'tome', r=r)\n"
        f"    vitfold.export(model, {str(place)!r}, target='torch', repeats=1)\n"
        "export(4)\n"
        "shutil.copytree = lambda *_, **__: os.kill(os.getpid(), 9)\n"
        "export(3)\n"
    )
    killed(script)
    assert {path.name for path in place.iterdir()} == {
        "model.pt2",
        "preprocessor_config.json",
        "report.json",
    }
    assert "ToMe(r=4)" in (place / "report.json").read_text()
    shutil.rmtree(place)
