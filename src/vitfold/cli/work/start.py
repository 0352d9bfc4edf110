"""The model as training finds it: folded, after a search where its method takes one, and with the
weights that it starts from."""

from pathlib import Path
from typing import Any

from torch import nn

from vitfold.cli import values
from vitfold.cli.images import shuffled_of
from vitfold.cli.search import SCORED
from vitfold.cli.subject import Choice, Start
from vitfold.cli.work.search import SCORES, search_with
from vitfold.cli.work.subject import Subject
from vitfold.data import AnySource
from vitfold.errors import TrainError
from vitfold.folding.calls import folds
from vitfold.folding.fold import fold, fold_to_learn
from vitfold.methods.checks import check_whole
from vitfold.tools.prune_merge.search import ITERATIONS
from vitfold.train import checkpoint


def begin(
    subject: Subject, choice: Choice, start: Start, running: Any, seed: int, accelerator: Any
) -> nn.Module:
    """The model as training finds it: folded where that was asked for, after a search where the
    method takes one, with the weights that it starts from.

    running: where results go, whether they go on, and by how many workers.
    """
    if choice.searches and not folds(subject.model):
        scores = running.output / SCORES if accelerator.is_main_process else None
        subject.model.to(accelerator.device)
        resume, workers = running.resume, running.workers
        model = _searched(subject.model, choice, subject.source, scores, resume, seed, workers)
    else:
        model = _folded(subject.model, choice)
    _load(model, start.initial_checkpoint)
    return model


def _folded(model: nn.Module, choice: Choice) -> nn.Module:
    """The model, folded where that was asked for."""
    if choice.method.lower() == "none":
        if any(value is not None for value in [choice.r, choice.flops, *choice.method_kwargs]):
            raise TrainError("--r, --flops and --method-kwargs go with a --method")
        return model
    if folds(model):
        raise TrainError(
            f"the model is folded by {folds(model)[0].method} already: leave out --method"
        )
    return fold_to_learn(model, choice.build())


def _searched(
    model: nn.Module,
    choice: Choice,
    source: AnySource,
    file: Path | None,
    resume: bool,
    seed: int,
    workers: int,
) -> nn.Module:
    """The model, folded by what a search in the images of training finds."""
    if choice.r is not None:
        raise TrainError(f"--r {choice.r}: {choice.method} takes --flops, or keep and prune")
    options = values.parse(choice.method_kwargs)
    if choice.flops is not None and "flops" in options:
        raise TrainError(f"--flops {choice.flops} and flops={options['flops']!r}: give one")
    options |= values.present(flops=choice.flops)
    iterations = options.get("iterations", ITERATIONS)
    check_whole("iterations", iterations, least=1)
    batches = shuffled_of(model, source, SCORED, iterations, seed, workers)
    return fold(model, search_with(model, batches, file, resume, options))


def _load(model: nn.Module, path: Path | None) -> None:
    """Give the model the weights of the checkpoint, if there is one."""
    if path is None:
        return
    try:
        model.load_state_dict(dict(checkpoint.weights(path)))
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise TrainError(
            f"--initial-checkpoint {path} is of another model or method: {why[:200]}"
        ) from error
