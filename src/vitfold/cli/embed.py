"""`vitfold embed`: the embeddings of a corpus of images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vitfold.cli import options, values
from vitfold.cli.groups import Group, grouped, option
from vitfold.cli.names import ENGINES, RUNTIMES

SOURCE_HELP = (
    "A folder, tars, Parquet with images or paths, a .txt with a path in each line, or an address "
    "that fsspec opens; `*` and {000..127} stand for several."
)


@dataclass(frozen=True)
class Output(Group):
    """What is written."""

    panel = "Output"

    output: Annotated[
        Path, option("A new directory, or that of a run to go on with.", "--output", "-o")
    ]
    dtype: Annotated[str, option("Of embeddings: float32 or float16.")] = "float32"
    tokens: Annotated[
        bool, option("Dense features too, in half precision, as a column.", "--tokens")
    ] = False
    shard_size: Annotated[int, option("Images of a file; what a kill loses at most.", min=1)] = 1024
    certificate: Annotated[
        int,
        option("Compare N images with the dense model: into the manifest.", metavar="N", min=0),
    ] = 0
    max_failures: Annotated[
        int | None,
        option("Stop where more images cannot be read.", min=0, show_default="any number"),
    ] = None


@dataclass(frozen=True)
class Engine(Group):
    """What does it."""

    panel = "Engine"

    engine: Annotated[str, option(f"{' or '.join(ENGINES)}: this machine, or Ray Data.")] = "local"
    address: Annotated[str | None, option("Of a cluster of Ray.", show_default="this machine")] = (
        None
    )
    runtime: Annotated[str, option(f"What the model runs in: {', '.join(RUNTIMES)}.")] = "eager"
    batch_size: Annotated[int, option("Images at a time.", "--batch-size", "-b", min=1)] = 64
    workers: Annotated[
        int | None,
        option(
            "Processes that read images.",
            "--workers",
            "-j",
            min=0,
            show_default="processors, less one",
        ),
    ] = None
    column: Annotated[
        str | None,
        option("Of Parquet: where images or paths are.", show_default="the first that can be"),
    ] = None


@grouped
def embed(
    out: Output,
    engine: Engine,
    choice: options.Choice,
    model_options: options.ModelOptions,
    precision: options.Precision,
    model: options.ModelName,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE_HELP)],
) -> None:
    """Embed every image of a source, each once, as files of Parquet; a run that was killed goes on
    with the same command.

    The model is as it is given, or folded where --method, --r or --flops says how. What cannot be
    read is in failures.parquet with the reason, and manifest.json has counts that add up: only then
    is 0 the exit status.
    """
    from vitfold.cli.work import embed as work

    work.refuse(engine, out, precision)
    values.directory_beside(out.output, model, model_options.plan)
    made = work.chosen(model_options.image_model(model), model_options.plan, choice)
    work.show_embedded(work.embedded(made, source, out, engine, precision, model_options.on))
