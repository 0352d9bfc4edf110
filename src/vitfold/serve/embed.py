"""Embed a corpus: every image once, none lost silently, and a killed run goes on where it was."""

import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitfold.errors import DataError, nearest
from vitfold.files import claimed, clear_unfinished, making, writing
from vitfold.saving.models import create_model
from vitfold.serve import certificate as certificates
from vitfold.serve import cluster, listing, local, manifest
from vitfold.serve.embedder import Embedder, preparation_of
from vitfold.serve.job import Job, job_of, read
from vitfold.serve.manifest import Embedded
from vitfold.serve.settings import Settings
from vitfold.serve.shards import Shards
from vitfold.serve.source import Source, described, entries_of, inside
from vitfold.serve.walking import Walk
from vitfold.serve.work import Progress, Tally, Tell, TooManyFailures, Work, listing_file

ENGINES = ("local", "ray")


def embed(
    model: nn.Module | str | os.PathLike[str],
    source: Source,
    directory: str | os.PathLike[str],
    *,
    engine: str = "local",
    tokens: bool = False,
    dtype: str = "float32",
    amp: str | None = None,
    runtime: str = "eager",
    batch_size: int = 64,
    shard_size: int = 1024,
    workers: int | None = None,
    device: str | torch.device | None = None,
    column: str | None = None,
    max_failures: int | None = None,
    certificate: int = 0,
    address: str | None = None,
    tell: Tell = lambda _: None,
) -> Embedded:
    """Embed all images of a source into a directory; an earlier run that was killed is gone on
    with, and gives the same rows.

    model: folded or not, or the name of one, with its published weights.
    source: a folder, tars, Parquet, a list of paths in a .txt, or whatever fsspec opens, with `*`
        and `{0..9}`; or a sequence of images.
    engine: `local`, processes that read and this one that computes; or `ray`, Ray Data.
    tokens: keep dense features too, in half precision.
    dtype: of embeddings, float32 or float16.
    amp: mixed precision, bfloat16 or float16.
    runtime: eager, compile, aoti, onnxruntime or openvino.
    shard_size: how many images a file is of; so many are lost at most when a run is killed.
    workers: how many processes read; by default one for each processor but one, in Ray as it has
        room for.
    device: by default where the model is.
    column: of Parquet, the one that holds images or their paths.
    max_failures: stop where more images than that cannot be read.
    certificate: compare so many images with the dense model; goes into the manifest.
    address: of a cluster of Ray.
    tell: called with how far the run is.
    """
    if engine not in ENGINES:
        raise DataError(f"engine {engine!r}{nearest(engine, ENGINES)}: expected local or ray")
    settings = Settings(
        dtype, amp, tokens, runtime, batch_size, shard_size, torch.get_num_threads()
    )
    model = model if isinstance(model, nn.Module) else create_model(model, pretrained=True)
    certificates.check(model, certificate)
    on = torch.device(device) if device is not None else next(model.parameters()).device
    place = _on_this_machine(directory)
    with _alone(place):
        before = read(place / "work" / "job.json")
        if before is not None:  # what it computes does not depend on this machine
            settings = replace(settings, threads=before.settings["threads"])
        preparation = preparation_of(model)
        shapes = Embedder(model, preparation, settings, on).shapes()
        job = job_of(model, described(source), column, preparation.config, settings, shapes)
        job = _begun(place, job, before, source, settings)
        shards = Shards(place, shapes, dtype)
        work = Work(model, preparation, settings, shards, (), on, _readers(workers, engine))
        tally = Tally(Progress(job.images, 0, 0, 0), tell, max_failures)
        work = replace(work, todo=_left(work, tally))
        run = _run(work, tally, engine, address)
        run |= _certificate(work, model, certificate, job.images)
        return manifest.finish(shards, job, len(work.open()), manifest.read(place), run)


def _on_this_machine(directory: str | os.PathLike[str]) -> Path:
    """A directory; an address would become folders of such names."""
    if "://" in os.fspath(directory):
        raise DataError(
            f"{directory} is an address: give a directory of this machine, and copy it there"
        )
    return Path(directory)


def _readers(workers: int | None, engine: str) -> int:
    """How many processes read, where nobody says it; with Ray, 0: as it has room for."""
    if workers is not None and workers < 0:
        raise DataError(f"workers={workers}: expected a number of processes, or 0")
    if engine == "ray":
        return workers or 0
    known = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (known or 2) - 1) if workers is None else workers


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Within it, the directory is this run's; what killed ones left unfinished is gone."""
    if directory.exists() and not directory.is_dir():
        raise DataError(f"{directory} is a file: give a directory")
    with writing(directory, DataError), claimed(directory) as ours:
        if not ours:
            raise DataError(f"{directory}: another run is at work there: wait until it ends")
        _refuse_foreign(directory)
        parts = [directory / name for name in PARTS]
        with making(*parts):
            for part in (directory, *parts):
                clear_unfinished(part)
            yield


PARTS = ("embeddings", "work", "work/records")


def _refuse_foreign(directory: Path) -> None:
    """Refuse a directory with anything else in it."""
    if (directory / "work").is_dir():
        return
    if others := sorted(item.name for item in directory.iterdir() if item.name not in PARTS):
        raise DataError(
            f"{directory} has {others[0]!r} in it, and no embeddings of vitfold: give a new "
            "directory"
        )


def _begun(
    directory: Path, job: Job, before: Job | None, source: Source, settings: Settings
) -> Job:
    """The job of a directory, with its listing; what another one began is refused."""
    path = listing_file(directory)
    if before is not None:
        job.refuse_other(before, directory)
        _note_versions(before, job)
        if listing.digest(path) != before.listing:
            raise DataError(f"{path} is not what was written: give a new directory")
        return before
    walk = Walk(column=job.column, leave=inside(directory))
    count = listing.write(path, entries_of(source, walk), settings.shard_size)
    if not count:
        path.unlink()
        raise DataError(f"{job.source}: there are no images{_others(walk)}")
    skipped = dict(sorted(walk.skipped.items()))
    job = replace(job, images=count, skipped=skipped, listing=listing.digest(path))
    job.write(directory / "work" / "job.json")
    return job


def _others(walk: Walk) -> str:
    """What there is in the place of images."""
    names = [f"{count} {ending or 'without an ending'}" for ending, count in walk.skipped.items()]
    return f", but other files: {', '.join(names)}" if names else ""


def _note_versions(before: Job, now: Job) -> None:
    changed = [
        f"{name} {theirs} is {now.versions.get(name)}"
        for name, theirs in before.versions.items()
        if theirs != now.versions.get(name)
    ]
    if changed:
        warnings.warn(
            f"other versions than in the run before, maybe other bits: {', '.join(changed)}",
            stacklevel=4,
        )


def _left(work: Work, tally: Tally) -> list[int]:
    """The shards that are to be done: those whose file is what their record says are there."""
    left = []
    for number in range(len(work.open())):
        record = work.shards.done(number)
        if record is None:
            left.append(number)
        else:
            tally.earlier(record)
    tally.tell(tally.progress)
    return left


def _run(work: Work, tally: Tally, engine: str, address: str | None) -> dict[str, Any]:
    """Do what is left, by an engine; how long that took."""
    start, before = time.perf_counter(), tally.progress.done
    try:
        tally.check()
        if work.todo and engine == "local":
            local.run(work, tally)
        elif work.todo:
            cluster.run(work, tally, address)
    except TooManyFailures:
        manifest.write_failures(work.shards.directory, tally.failures)
        raise
    seconds, images = time.perf_counter() - start, tally.progress.done - before
    rate = images / seconds if images else None
    about = {"engine": engine, "device": str(work.device), "workers": work.workers}
    about |= {"images": images, "seconds": seconds, "images_per_second": rate}
    return {"run": about} if work.todo else {}


def _certificate(work: Work, model: nn.Module, count: int, images: int) -> dict[str, Any]:
    """The certificate, where it is asked for."""
    return {"certificate": certificates.certified(work, model, count, images)} if count else {}
