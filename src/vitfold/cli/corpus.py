"""What `vitfold embed` writes, and what does it, as the command line says it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vitfold.cli.groups import Group, option
from vitfold.cli.names import ENGINES, RUNTIMES


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
