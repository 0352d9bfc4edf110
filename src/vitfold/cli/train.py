"""`vitfold train`: train a model, dense or folded, under timm's option names."""

from vitfold.cli import options, subject
from vitfold.cli.groups import grouped
from vitfold.cli.recipe import Learning, Looks, Teaching
from vitfold.cli.running import Running
from vitfold.errors import TrainError


@grouped
def train(
    model: options.ModelName,
    data: subject.Data,
    start: subject.Start,
    choice: subject.Choice,
    learning: Learning,
    teaching: Teaching,
    looks: Looks,
    running: Running,
    precision: options.Precision,
) -> None:
    """Train a model, dense or folded.

    Everything goes to --output: `best` and `last` are models for any other command, log.csv has a
    row for every epoch. On several devices or machines: `accelerate launch -m vitfold train ...`.
    """
    from vitfold.cli.work.train import run

    data.check(model)
    learning.check(teaching, looks)
    if data.pixels and looks.mix:
        raise TrainError("--mixup, --cutmix: only images of one class are mixed")
    run(model, data, start, choice, learning, teaching, looks, running, precision.dtype)
