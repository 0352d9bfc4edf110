"""`vitfold embed`: the embeddings of a corpus of images."""

from typing import Annotated

import typer

from vitfold.cli import options, values
from vitfold.cli.corpus import Engine, Output
from vitfold.cli.groups import grouped

SOURCE_HELP = (
    "A folder, tars, Parquet with images or paths, a .txt with a path in each line, or an address "
    "that fsspec opens; `*` and {000..127} stand for several."
)


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
