"""The embedding of a corpus, as `vitfold embed` shows it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.progress import MofNCompleteColumn, TimeRemainingColumn
from torch import nn

from vitfold.cli import options, show
from vitfold.cli.corpus import Engine, Output
from vitfold.cli.work.fold import folded_by
from vitfold.errors import DataError
from vitfold.serve import work
from vitfold.serve.embed import embed
from vitfold.serve.manifest import FAILURES, Embedded
from vitfold.serve.manifest import FILE as MANIFEST
from vitfold.serve.settings import Settings
from vitfold.tools.fidelity import Fidelity


def refuse(engine: Engine, out: Output, precision: options.Precision) -> None:
    """Refuse what cannot be done, before a model is made."""
    Settings(out.dtype, _amp(precision), out.tokens, engine.runtime)
    if engine.address is not None and engine.engine != "ray":
        raise DataError(f"--address {engine.address} is of Ray: give --engine ray")


def chosen(model: nn.Module, plan: Path | None, choice: options.Choice) -> nn.Module:
    """The model as it is, or folded where the command line says how."""
    return folded_by(model, plan, choice) if choice.is_set else model


def _amp(precision: options.Precision) -> str | None:
    return None if precision.dtype is None else precision.amp_dtype


def embedded(
    model: nn.Module,
    source: str,
    out: Output,
    engine: Engine,
    precision: options.Precision,
    device: torch.device,
) -> Embedded:
    """The corpus embedded, with a bar."""
    with _bar() as tell:
        return embed(
            model,
            source,
            out.output,
            engine=engine.engine,
            tokens=out.tokens,
            dtype=out.dtype,
            amp=_amp(precision),
            runtime=engine.runtime,
            batch_size=engine.batch_size,
            shard_size=out.shard_size,
            workers=engine.workers,
            device=device,
            column=engine.column,
            max_failures=out.max_failures,
            certificate=out.certificate,
            address=engine.address,
            tell=tell,
        )


@contextmanager
def _bar() -> Iterator[work.Tell]:
    """A bar: images, how many a second, what share of them is decoded, and the time that is
    left."""
    columns = (MofNCompleteColumn(), show.WORDS, TimeRemainingColumn())
    with show.following("listing", None, *columns) as update:
        start: list[float] = []

        def tell(now: work.Progress) -> None:
            start[:] = start or [time.perf_counter()]
            words = words_of(now, time.perf_counter() - start[0])
            update(description="embedding", total=now.images, completed=now.done, words=words)

        yield tell


def words_of(now: work.Progress, seconds: float) -> str:
    """What stands beside the bar."""
    rate = (now.done - now.before) / seconds if seconds > 0 else 0.0
    words = [f"{rate:.1f} images/s"]
    if now.decoded is not None:
        words.append(f"{now.decoded / now.images:.0%} decoded")
    if now.failed:
        words.append(f"{now.failed} failed")
    return ", ".join(words)


def show_embedded(result: Embedded) -> None:
    """What came in, what went out, what failed."""
    counts = result.manifest["counts"]
    rows = [[name, str(count)] for name, count in counts.items()]
    rate = result.manifest.get("run", {}).get("images_per_second")
    if rate is not None:
        rows.append(["images/s", f"{rate:.1f}"])
    fold = result.manifest["fold"]
    name = f"{result.manifest['model']['name']}, {fold['words'] if fold else 'dense'}"
    show.table(name, ["", ""], rows)
    if (figures := result.manifest.get("certificate")) is not None:
        known = {name: figure for name, figure in figures.items() if name != "asked"}
        report = Fidelity.of_json(known)
        rows = [["images", str(report.images), ""], *report.rows()]
        show.table("beside the dense model", ["", "", "95 % interval"], rows)
    if skipped := result.manifest["skipped"]:
        names = ", ".join(f"{count} {end or 'without an ending'}" for end, count in skipped.items())
        show.note(f"other files than images were left out: {names}")
    if result.failed:
        show.note(f"{result.failed} images cannot be read: {result.directory / FAILURES} says why")
    show.written(result.directory / MANIFEST)
