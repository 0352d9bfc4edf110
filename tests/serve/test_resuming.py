"""Runs that are killed, at any moment: the next one goes on, and every row is there once, with the
same bits."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import corpora
from support.saving import tiny

import vitfold
from vitfold.errors import DataError
from vitfold.files import claimed
from vitfold.serve.listing import Listing

FORK = pytest.mark.skipif(sys.platform != "linux", reason="a copy of this process is killed")

SMALL: dict[str, Any] = {"shard_size": 8, "batch_size": 4, "workers": 2}


def run(source: Path, out: Path) -> None:
    vitfold.embed(corpora.model(), source, out, **SMALL)


def begun(source: Path, out: Path) -> Any:
    """A run in a copy of this process."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(source, out))
    process.start()
    return process


@FORK
def test_killed_at_some_moments(tmp_path: Path) -> None:
    killed(tmp_path, 6)


@pytest.mark.exhaustive
@FORK
def test_killed_at_twenty_moments(tmp_path: Path) -> None:
    killed(tmp_path, 20)


def killed(tmp_path: Path, times: int) -> None:
    """The process that computes, or one that decodes, so many times."""
    source = corpora.mutated(tmp_path / "in", 60)
    run(source, tmp_path / "whole")
    start = time.monotonic()
    run(source, tmp_path / "timed")
    most, draw = time.monotonic() - start, random.Random(0)
    for number in range(times):
        process = begun(source, tmp_path / "out")
        time.sleep(draw.uniform(0, most))
        below = sorted(corpora.children(process.pid))
        victim = process.pid if number % 2 or not below else draw.choice(below)
        if process.is_alive():
            os.kill(victim, signal.SIGKILL)
        if victim == process.pid:
            process.join()
        else:
            process.join(60)
            assert process.exitcode == 0  # it goes on without
        if (tmp_path / "out" / "manifest.json").exists() and number < times - 1:
            same(tmp_path / "whole", tmp_path / "out")
            (tmp_path / "out").rename(tmp_path / f"done{number}")
    run(source, tmp_path / "out")
    same(tmp_path / "whole", tmp_path / "out")


def same(one: Path, other: Path) -> None:
    assert corpora.contents(one) == corpora.contents(other)
    assert corpora.failures(one) == corpora.failures(other)
    first, second = corpora.manifest(one), corpora.manifest(other)
    for name in ("counts", "shards", "listing", "model", "fold"):
        assert first[name] == second[name]
    ids = [row["id"] for row in corpora.rows(other)]
    assert len(ids) == len(set(ids))
    assert len(ids) + len(corpora.failures(other)) == first["counts"]["in"]


@FORK
def test_nothing_is_done_twice(tmp_path: Path) -> None:
    source = corpora.folder(tmp_path / "in", 40)
    seen: list[int] = []

    def stop(now: Any) -> None:
        seen.append(now.done)
        if now.done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vitfold.embed(corpora.model(), source, tmp_path / "out", tell=stop, **SMALL)
    assert not (tmp_path / "out" / "manifest.json").exists()
    stamps = {f: f.stat().st_mtime_ns for f in (tmp_path / "out" / "embeddings").iterdir()}
    assert len(stamps) == 2
    told: list[Any] = []
    result = vitfold.embed(corpora.model(), source, tmp_path / "out", tell=told.append, **SMALL)
    assert [told[0].before, told[0].done, told[-1].done] == [16, 16, 40]
    assert {f: f.stat().st_mtime_ns for f in stamps} == stamps
    assert result.manifest["run"]["images"] == 24


def test_what_is_damaged_is_made_anew(tmp_path: Path) -> None:
    source = corpora.folder(tmp_path / "in", 24)
    run(source, tmp_path / "out")
    before = corpora.contents(tmp_path / "out")
    files = sorted((tmp_path / "out" / "embeddings").iterdir())
    files[0].write_bytes(before[files[0].name][:-7])
    files[1].unlink()
    (tmp_path / "out" / "work" / "records" / "000002.json").write_text("{")
    (tmp_path / "out" / "embeddings" / ".000002.0123abcd.parquet").write_bytes(b"half")
    run(source, tmp_path / "out")
    assert corpora.contents(tmp_path / "out") == before


def test_the_work_stays_what_it_was(tmp_path: Path) -> None:
    """An image that came or went since does not move others."""
    source = corpora.folder(tmp_path / "in", 16)
    run(source, tmp_path / "out")
    rows = corpora.rows(tmp_path / "out")
    (source / "a.jpg").write_bytes(corpora.encoded(7))
    (tmp_path / "out" / "embeddings" / "000001.parquet").unlink()
    run(source, tmp_path / "out")
    assert corpora.rows(tmp_path / "out") == rows
    (tmp_path / "out" / "work" / "listing.arrow").write_bytes(b"x")
    with pytest.raises(DataError, match="is not what was written"):
        run(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": vitfold.ToMe(r=3)}, r"the fold ToMe\(r=2\), and this is ToMe\(r=3\)"),
        ({"model": None}, r"the fold ToMe\(r=2\), and this is dense"),
        ({"model": "weights"}, "with other weights"),
        ({"model": "digits"}, "the model test_vit.r160_in1k, and this is digits"),
        ({"dtype": "float16"}, "--dtype float32, and this is float16"),
        ({"batch_size": 2}, "--batch-size 4, and this is 2"),
        ({"source": "class0"}, "the source"),
    ],
)
def test_another_job_is_refused_by_name(tmp_path: Path, change: Any, words: str) -> None:
    source = corpora.folder(tmp_path / "in", 4)
    options = SMALL | {"workers": 0}
    vitfold.embed(corpora.model(), source, tmp_path / "out", **options)
    model = corpora.model()
    if "model" in change:
        other = change.pop("model")
        model = vitfold.fold(tiny(), other) if isinstance(other, vitfold.Method) else tiny()
        if other == "weights":
            model = corpora.model()
            model.norm.weight.data += 1
        if other == "digits":
            model = vitfold.create_model("digits", pretrained=True)
    source = source / change.pop("source", "")
    with pytest.raises(DataError, match=words):
        vitfold.embed(model, source, tmp_path / "out", **(options | change))


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    source = corpora.folder(tmp_path / "in", 4)
    with (
        claimed(tmp_path / "out"),
        pytest.raises(DataError, match="another run is at work there"),
    ):
        run(source, tmp_path / "out")
    run(source, tmp_path / "out")


@FORK
def test_two_processes_at_once_are_refused(tmp_path: Path) -> None:
    source = corpora.folder(tmp_path / "in", 400)
    process = begun(source, tmp_path / "out")
    while not list((tmp_path / "out").glob("embeddings/*.parquet")):
        time.sleep(0.01)
    with pytest.raises(DataError, match="another run is at work there"):
        run(source, tmp_path / "out")
    process.kill()  # its children let go at once
    process.join()
    run(source, tmp_path / "out")
    assert corpora.manifest(tmp_path / "out")["counts"]["out"] == 400


def test_a_directory_of_anything_else_is_left_alone(tmp_path: Path) -> None:
    source = corpora.folder(tmp_path / "in", 2)
    with pytest.raises(DataError, match="has 'class0' in it, and no embeddings"):
        run(source, source)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        run(source, tmp_path / "file")


def test_results_in_the_source_are_no_source(tmp_path: Path) -> None:
    source = corpora.folder(tmp_path / "in", 3)
    run(source, source / "out")
    assert len(Listing(source / "out" / "work" / "listing.arrow").shard(0)) == 3


def test_threads_are_those_of_the_first_run(tmp_path: Path) -> None:
    """More of them may add numbers in another order."""
    source = corpora.folder(tmp_path / "in", 2)
    run(source, tmp_path / "out")
    try:
        torch.set_num_threads(2)
        (tmp_path / "out" / "embeddings" / "000000.parquet").unlink()
        run(source, tmp_path / "out")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert corpora.manifest(tmp_path / "out")["settings"]["threads"] == 1


DRIVER = """
import json, os, sys
import torch
torch.set_num_threads(1)
import vitfold
from support import corpora
source, out, engine = sys.argv[1:]
def tell(now):
    print(json.dumps(now.done), flush=True)
if __name__ == "__main__":
    options = {"engine": engine, "shard_size": 8, "batch_size": 4}
    vitfold.embed(corpora.model(), source, out, tell=tell, **options)
"""


def driver(place: Path, source: Path, out: Path) -> "subprocess.Popen[str]":
    """A run with Ray, in a process of its own."""
    (place / "driver.py").write_text(DRIVER)
    roots = (Path(vitfold.__file__).parents[1], Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, roots))}
    return subprocess.Popen(
        [sys.executable, place / "driver.py", source, out, "ray"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@FORK
def test_ray_killed_at_twenty_moments(tmp_path: Path) -> None:
    """The driver, or any process of Ray that reads or embeds."""
    source, out = corpora.mutated(tmp_path / "in", 400), tmp_path / "out"
    run(source, tmp_path / "whole")
    draw, drivers, workers = random.Random(0), 0, 0
    while drivers < 7 or workers < 13:
        process = driver(tmp_path, source, out)
        most = 2 * drivers + 2  # so many workers until this driver
        for _ in process.stdout or ():
            time.sleep(draw.uniform(0, 0.2))
            below = [pid for pid in corpora.children(process.pid) if _is_worker(pid)]
            if workers < most and below:
                os.kill(draw.choice(below), signal.SIGKILL)
                workers += 1
            elif draw.random() < 0.5:
                process.kill()
                break
        process.communicate()
        drivers += process.returncode == -signal.SIGKILL
        if process.returncode == 0:  # it was done before: begin with another directory
            same(tmp_path / "whole", out)
            out = tmp_path / f"out{drivers}"
        else:
            assert process.returncode == -signal.SIGKILL
    last = driver(tmp_path, source, out)
    last.communicate()
    assert last.returncode == 0
    same(tmp_path / "whole", out)


def _is_worker(pid: int) -> bool:
    """Whether a process runs a task or an actor of Ray Data."""
    try:
        return b"ray::Map" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.exhaustive
def test_ray_gives_the_same_bits(tmp_path: Path) -> None:
    source = corpora.mutated(tmp_path / "in", 20)
    run(source, tmp_path / "whole")
    process = driver(tmp_path, source, tmp_path / "out")
    process.communicate()
    assert process.returncode == 0
    same(tmp_path / "whole", tmp_path / "out")
