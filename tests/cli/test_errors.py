"""Whatever is asked of a command: one line and exit status 2, and nothing left behind."""

from pathlib import Path

import pytest
from support.cli import pictures, vitfold_

from vitfold.cli import offline
from vitfold.errors import UnsupportedModel

MODEL = "vit_tiny_patch16_224"

HUGE = "12345678901234567890"


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys):
    """What a command says that is refused."""

    def run(*arguments: object) -> str:
        assert vitfold_(monkeypatch, *map(str, arguments)) == 2
        message = capsys.readouterr().err.lstrip("\n")
        assert message.startswith("error: ")
        assert message.count("\n") == 1
        return message

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ("bench", "digits", "-b", HUGE),
        ("bench", "digits", "--repeats", HUGE),
        ("sweep", "digits", "-b", f"1,{HUGE}"),
        ("validate", "digits", "--batch-size", HUGE),
        ("validate", "digits", "--limit", HUGE),
        ("calibrate", "digits", "--seed", HUGE, "-o", "out"),
        ("search", "digits", "--seed", HUGE, "-o", "out"),
        ("train", "digits", "--seed", HUGE, "-o", "out"),
        ("train", "digits", "--batch-size", HUGE, "-o", "out"),
        ("bench", MODEL, "--img-size", HUGE),
    ],
    ids=" ".join,
)
def test_numbers_of_twenty_digits_are_refused(
    refused, monkeypatch, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(*arguments)
    assert HUGE in message
    assert "expected" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["validate", "bench", "sweep", "calibrate", "freeze", "search"])
@pytest.mark.parametrize("name", ["a loop of links", "a\0b"])
def test_what_is_no_name_of_a_model(refused, tmp_path: Path, command: str, name: str) -> None:
    loop = tmp_path / "a loop of links"
    loop.symlink_to(loop)
    output = ("-o", tmp_path / "out") if command in ("calibrate", "freeze", "search") else ()
    message = refused(command, name if "\0" in name else loop, *output)
    assert "unknown model" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("calibrate", "digits", "--flops", "0.01", "--images", "4"),
        ("freeze", "digits"),
        ("search", "digits", "--grouping", "rings"),
        ("trace", "digits", "nothing.png"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_no_empty_directory_stays(refused, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    refused(*arguments, "-o", tmp_path / "some" / "where")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_was_there_stays(refused, tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    refused("freeze", "digits", "-o", tmp_path / "before")
    refused("freeze", "digits", "-o", tmp_path / "before" / "new")
    assert [path.name for path in tmp_path.rglob("*")] == ["before"]


def test_no_empty_directory_stays_after_ctrl_c(monkeypatch, tmp_path: Path) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vitfold.cli.work.calibrate.calibrate_on", interrupt)
    request = ("calibrate", "digits", "--images", "4", "-o", tmp_path / "out")
    assert vitfold_(monkeypatch, *request) == 130
    assert not (tmp_path / "out").exists()


def test_weights_that_cannot_be_fetched_are_said_at_once(
    refused, monkeypatch, tmp_path: Path
) -> None:
    """The hub's library would ask again and again; it is told to look at its cache alone."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(offline, "reachable", lambda address: False)
    data = pictures(tmp_path / "data")
    message = refused("validate", MODEL, "--data-dir", data, "--split", "train")
    assert "no connection" in message
    assert "--no-pretrained" in message
    message = refused("train", MODEL, "--pretrained", "--data-dir", data, "--no-val", "-o",
                   tmp_path / "out")  # fmt: skip
    assert "leave out --pretrained" in message
    assert constants.HF_HUB_OFFLINE is False


def test_other_errors_of_a_model_are_not_taken_for_a_lost_connection(monkeypatch) -> None:
    monkeypatch.setattr(offline, "reachable", lambda address: True)
    with (
        pytest.raises(UnsupportedModel, match="of another kind"),
        offline.fetching(MODEL, True, "x"),
    ):
        raise UnsupportedModel("of another kind") from ValueError("no weights")
    monkeypatch.setattr(offline, "reachable", lambda address: 1 / 0)  # nobody asks
    for name, pretrained in ((MODEL, False), ("digits", True)):
        with offline.fetching(name, pretrained, "x"):
            pass


def test_a_server_answers_or_does_not(monkeypatch) -> None:
    import socket

    monkeypatch.setattr("urllib.request.getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert offline.reachable(f"http://127.0.0.1:{port}")
    assert not offline.reachable(f"http://127.0.0.1:{port}")
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "somewhere"})
    assert offline.reachable("https://nowhere.invalid")
