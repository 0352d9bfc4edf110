"""How the page is opened: by the command, and by a Space."""

import importlib.util
import sys
import threading
import tomllib
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from support import small
from support.cli import vitfold_
from support.file import own_file
from support.uploads import scene

import vitfold
from vitfold.errors import DataError, MissingExtra
from vitfold.serve.explore import page as module
from vitfold.serve.explore.examples import drawn, examples
from vitfold.serve.explore.page import free_port, library

ROOT = Path(vitfold.__file__).parents[2]


def refused(monkeypatch, capsys, *arguments: object) -> str:
    assert vitfold_(monkeypatch, "explore", *arguments) == 2
    message = capsys.readouterr().err.strip()
    assert message.count("\n") == 0
    return str(message)


def test_without_the_library_the_extra_is_named(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtra):
        library()
    message = refused(monkeypatch, capsys, f"{own_file(tmp_path)}:build", "--no-browser")
    assert message == 'error: gradio is not installed: pip install "vitfold[explore]"'


def test_what_cannot_be_explored_is_refused(monkeypatch, capsys, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    file = own_file(tmp_path)
    assert "a class to every pixel" in refused(monkeypatch, capsys, f"{file}:scenes")
    message = refused(monkeypatch, capsys, f"{file}:build", "--examples", tmp_path / "nowhere")
    assert "No such file or directory" in message
    message = refused(monkeypatch, capsys, f"{file}:build", "--host", "256.0.0.1", "--port", "0")
    assert "--host 256.0.0.1" in message


def test_the_command_says_where_the_page_is(monkeypatch, capsys, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    opened: list[module.Page] = []

    @contextmanager
    def fake(page: module.Page, host: str, port: int, browser: bool):
        opened.append(page)
        assert (host, port, browser) == ("127.0.0.1", None, False)
        yield "http://127.0.0.1:7860/"

    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vitfold.cli.work.explore.opened", fake)
    monkeypatch.setattr(threading.Event, "wait", interrupt)
    name = f"{own_file(tmp_path)}:build"
    options = ("--no-browser", "--max-bytes", "1000", "--model-kwargs", "depth=3")
    assert vitfold_(monkeypatch, "explore", name, *options) == 0
    assert "http://127.0.0.1:7860/ (Ctrl-C ends it)" in capsys.readouterr().out
    [page] = opened
    assert page.explorer.limits.bytes == 1000
    assert page.explorer.depth == 3
    assert page.views.origin.arguments == {"depth": 3}
    assert page.views.origin.pretrained is None


def test_examples_are_those_of_a_folder(tmp_path: Path) -> None:
    model = small.vit()
    for number in range(10):
        scene(seed=number).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    assert [name for name, _ in examples(model, tmp_path)] == [f"{n}.png" for n in range(8)]
    with pytest.raises(DataError, match="expected pictures"):
        examples(model, tmp_path.parent / tmp_path.name / "..")


def test_there_is_always_an_example(monkeypatch) -> None:
    monkeypatch.setattr("vitfold.serve.explore.examples._bundled", lambda: iter(()))
    [(name, picture)] = examples(small.vit())
    assert (name, picture.mode, picture.size) == ("drawn", "RGB", (320, 320))
    assert len(drawn(64).getcolors(10_000) or []) > 20
    digits = examples(vitfold.create_model("digits", pretrained=True))
    assert all(picture.mode == "RGB" for _, picture in digits)


def test_a_free_port_is_one() -> None:
    assert free_port("127.0.0.1") > 0
    with pytest.raises(DataError, match=r"--host 256\.0\.0\.1"):
        free_port("256.0.0.1")


def test_a_space_has_what_it_needs(monkeypatch) -> None:
    space = ROOT / "space"
    _, head, _ = (space / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    front = yaml.safe_load(head)
    assert front["sdk"] == "gradio"
    assert (space / front["app_file"]).is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [library] = project["optional-dependencies"]["explore"]
    assert int(front["sdk_version"].split(".")[0]) >= int(library.partition(">=")[2].split(".")[0])
    assert "vitfold[explore]" in (space / "requirements.txt").read_text()

    served: list[object] = []

    @contextmanager
    def fake(page: module.Page, **where: object):
        served.append((page.explorer.limits.bytes, where))
        yield ""

    spec = importlib.util.spec_from_file_location("space_app", space / "app.py")
    assert spec is not None
    assert spec.loader is not None
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    monkeypatch.setattr(app, "opened", fake)
    monkeypatch.setattr(app.vitfold, "create_model", lambda *_, **__: small.vit().float())
    monkeypatch.setattr(threading.Event, "wait", lambda self: None)
    app.main()
    assert served == [(8_000_000, {"host": "0.0.0.0", "port": 7860})]
