"""A cluster of Ray: one that is not there, and a real one on this machine."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support import corpora

import vitfold
from vitfold.errors import DataError
from vitfold.saving.sources import file
from vitfold.serve import cluster

ROOT = Path(vitfold.__file__).parents[1]

ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    # Of these tests alone: a cluster takes one that was ever saved, and who joins it does not.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}

BODY = (
    "import torch\n\nclass Body(torch.nn.Module):\n    pass\n\ndef halved(x):\n    return x / 2\n"
)

MINE = """
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
import body.parts
from helper import halved

class Mine(VisionTransformer, body.parts.Body):
    def forward(self, x):
        return body.parts.halved(halved(super().forward(x)))

def build():
    torch.manual_seed(0)
    return Mine(img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=5)
"""


def own_files(place: Path) -> str:
    """A model in a file, beside a module and a package that it takes parts from."""
    (place / "body").mkdir(parents=True)
    (place / "mine.py").write_text(MINE)
    (place / "helper.py").write_text(BODY)
    (place / "body" / "__init__.py").write_text("")
    (place / "body" / "parts.py").write_text(BODY)
    return f"{place}/mine.py:build"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[str]:
    before, known = list(sys.path), set(sys.modules)
    yield own_files(tmp_path / "code")
    sys.path[:] = before
    for name in set(sys.modules) - known:
        if name.partition(".")[0] in ("helper", "body"):
            del sys.modules[name]


def test_what_lies_beside_a_file_is_known(own: str) -> None:
    vitfold.create_model(own)
    names = {module.__name__.rpartition("_")[0] or module.__name__ for module in file.beside()}
    assert {"mine", "helper", "body"} <= names
    assert not names & {"torch", "timm", "vitfold", "os"}


@pytest.mark.parametrize(
    "address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "no-such-host.invalid:{}"]
)
def test_an_address_where_nobody_answers_is_refused_at_once(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(DataError, match="Ray cannot be reached at") as caught:
        cluster._check_answers(address.format(free))
    assert time.monotonic() - start < 2 * cluster.PATIENCE
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_what_answers_and_is_no_ray_is_refused(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            wire, _ = server.accept()
            wire.recv(1024)
            if answer:
                wire.sendall(answer)
            done.wait(60)
            wire.close()

        done = threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(DataError, match="Ray cannot be reached at"):
            cluster._check_answers(f"127.0.0.1:{server.getsockname()[1]}")
        done.set()
        thread.join()


def test_words_of_ray_are_left_to_it() -> None:
    for word in (None, "auto", "local", "nonsense"):
        cluster._check_answers(word)
    with pytest.raises(DataError):
        cluster._check_answers("127.0.0.1:99999999")


@pytest.mark.exhaustive
def test_the_command_says_that_nobody_answers(tmp_path: Path) -> None:
    corpora.folder(tmp_path / "in", 2)
    shown = embedded("digits", tmp_path, "127.0.0.1:1")
    assert shown.returncode == 2
    [line] = shown.stderr.strip().splitlines()
    assert "Ray cannot be reached at 127.0.0.1:1: Connection refused" in line


def embedded(
    model: str, place: Path, address: str, environment: Mapping[str, str] = ENVIRONMENT
) -> "subprocess.CompletedProcess[str]":
    """The command, on the pictures in `in`."""
    command = [sys.executable, "-m", "vitfold", "embed", model, place / "in", "-o", place / "out"]
    return subprocess.run(
        [*command, "--engine", "ray", "--address", address, "--shard-size", "4"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        cwd=place,
    )


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """The address of a cluster of one machine, which knows nothing of what a test imports."""
    if sys.platform == "win32":
        pytest.skip("processes are ended as a group")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    # Names of sockets may not be long.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as place:
        command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block"]
        command += [f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
        command += [f"--temp-dir={place}", "--include-dashboard=false"]
        process = subprocess.Popen(
            [*command, "--disable-usage-stats"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        try:
            _await(port)
            yield f"127.0.0.1:{port}"
        finally:
            below = corpora.children(process.pid)
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            for pid in (*below, process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _await(port: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail("Ray does not start")


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_a_model_of_a_file_beside_others_on_a_cluster(head: str, own: str, tmp_path: Path) -> None:
    corpora.folder(tmp_path / "in", 10)
    shown = embedded(own, tmp_path, head)
    assert shown.returncode == 0, shown.stderr
    assert corpora.manifest(tmp_path / "out")["counts"] == {"in": 10, "out": 10, "failed": 0}
    vitfold.embed(
        vitfold.create_model(own), tmp_path / "in", tmp_path / "here", shard_size=4, workers=0
    )
    assert corpora.contents(tmp_path / "out") == corpora.contents(tmp_path / "here")
    # What can be sent nowhere is said, and nothing hangs.
    with (tmp_path / "code" / "body" / "parts.py").open("a") as parts:
        parts.write("import threading\nLOCK = threading.Lock()\n")
    (tmp_path / "out").rename(tmp_path / "before")
    shown = embedded(own, tmp_path, head)
    assert shown.returncode == 2
    last = shown.stderr.strip().splitlines()[-1]
    assert "cannot be sent to Ray's processes: cannot pickle '_thread.lock' object" in last
    assert "Traceback" not in shown.stderr


@pytest.mark.exhaustive
def test_a_cluster_that_asks_for_a_token_says_so(head: str, tmp_path: Path) -> None:
    corpora.folder(tmp_path / "in", 2)
    bare = {key: value for key, value in ENVIRONMENT.items() if not key.startswith("RAY_AUTH")}
    shown = embedded("digits", tmp_path, head, bare)
    assert shown.returncode == 2
    assert "set RAY_AUTH_MODE=token" in shown.stderr.strip().splitlines()[-1]
