"""`vitfold tune`: the fold that loses least of those that were measured to keep a goal here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vitfold.cli import options, values
from vitfold.cli.groups import Group, grouped, option
from vitfold.cli.names import MINUTES


@dataclass(frozen=True)
class Goals(Group):
    """What the fold has to keep; one is given."""

    panel = "Goal (one of these)"

    speedup: Annotated[float | None, option("Times as fast as the dense model there.")] = None
    latency_ms: Annotated[float | None, option("Milliseconds for a batch, at most.")] = None
    throughput: Annotated[float | None, option("Images per second, at least.")] = None
    flops: Annotated[float | None, option("Share of the dense FLOPs, at most.")] = None
    cosine: Annotated[
        float | None, option("Mean cosine of embeddings with the dense model's; the fastest then.")
    ] = None
    agreement: Annotated[
        float | None, option("Share of images of the dense model's class; the fastest then.")
    ] = None


@grouped
def tune(
    goals: Goals,
    model_options: options.ModelOptions,
    data: options.Images,
    runtime: options.Runtime,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Plan and card go here, and what the next run knows."),
    ],
    model: options.ModelName = "digits",
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1)] = 1,
    methods: Annotated[
        str | None, typer.Option(help="With commas between.", show_default="ward,fisher,tome,lgtm")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Folds that are looked at.", show_default="any")
    ] = None,
    minutes: Annotated[float, typer.Option(help="For how long.")] = MINUTES,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of the last timing.")] = 15,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 where the model stays dense.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Only N images, evenly spaced.")] = 128,
    workers: options.Workers = 0,
) -> None:
    """Find the fold that loses least of those that were measured to keep a goal on this machine, in
    the runtime and at the batch size of its use; or the fastest that stays as near as is asked.

    Pictures without labels are enough. Where no fold is faster than the dense model here, that is
    said, and the model stays dense. Ctrl-C keeps what is best so far; the same command goes on.
    """
    from vitfold.cli.work import tune as work

    where = runtime.on(model_options.on, options.Precision())
    work.refuse(goals, output)
    values.directory_beside(output, model, model_options.plan)
    made = model_options.model(model)
    images = work.sample(made, data.source, limit, workers)
    names = [values.method_name(name) for name in methods.split(",")] if methods else None
    tuned = work.tuned(
        made,
        images,
        goals,
        batch_size=batch_size,
        runtime=where.name,
        int8=where.int8,
        methods=names,
        trials=trials,
        minutes=minutes,
        repeats=repeats,
        directory=output,
    )
    work.show_tuned(model, tuned, output)
    if strict and tuned.trial is None:
        raise typer.Exit(1)
