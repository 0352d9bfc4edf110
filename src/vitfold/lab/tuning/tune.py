"""`tune`: the fold that loses least of those that were measured to keep a goal on this machine."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from vitfold.errors import DataError, MethodError, TuneError
from vitfold.exporting.runtime import Runtime
from vitfold.folding.fold import clone, unfold
from vitfold.lab.tuning.by_nearness import ForNearness, figure
from vitfold.lab.tuning.by_speed import ForFlops, ForSpeed
from vitfold.lab.tuning.card import FILE as CARD
from vitfold.lab.tuning.card import PAGE, PICTURE
from vitfold.lab.tuning.goal import Goal, goal_of
from vitfold.lab.tuning.measures import Measures
from vitfold.lab.tuning.result import Tuned
from vitfold.lab.tuning.search import Budget, Candidate, Search, Tell, silent
from vitfold.lab.tuning.shape import kinds_of
from vitfold.lab.tuning.trials import FILE as TRIALS
from vitfold.lab.tuning.trials import Setting, Trials
from vitfold.saving.fields import FILE as PLAN
from vitfold.saving.plans import Directory
from vitfold.saving.store import WEIGHTS
from vitfold.tools.digest import fingerprint
from vitfold.tools.results import machine, versions

MINUTES = 5.0
"""How long it takes, where nobody says otherwise."""

FINAL = 0.35
"""The share of that time that is left for what is timed once more in the end."""


def tune(
    model: nn.Module,
    images: Tensor,
    *,
    speedup: float | None = None,
    latency_ms: float | None = None,
    throughput: float | None = None,
    flops: float | None = None,
    cosine: float | None = None,
    agreement: float | None = None,
    batch_size: int = 1,
    runtime: str = "eager",
    int8: bool = False,
    methods: Sequence[str] | None = None,
    trials: int | None = None,
    minutes: float = MINUTES,
    repeats: int = 15,
    directory: Directory | None = None,
    tell: Tell = silent,
) -> Tuned:
    """Fold a model, in place, in the way that loses least of those that were measured to keep a
    goal here: its images, its runtime, its batch size. It stays dense, and `Tuned.slower` says so,
    where no fold is faster than the dense model in that runtime.

    One goal is given. Of these the fold that loses least is looked for:

    speedup: times as fast as the dense model in that runtime (in eight bits, if that is asked for).
    latency_ms: milliseconds for a batch.
    throughput: images per second.
    flops: share of the dense FLOPs.

    and of these the fastest one:

    cosine: the mean cosine of embeddings with those of the dense model.
    agreement: the share of images that get the dense model's class.

    images: `[N, C, H, W]`, prepared for the model, some hundred; no labels are needed.
    runtime: eager, compile, aoti, onnxruntime or openvino.
    methods: those that are tried, by name.
    trials, minutes: how many folds are looked at, and for how long. Stopping it (Ctrl-C) keeps what
        is best by then.
    directory: what is tried is kept there, and is not measured again when it is called again.
    tell: is called with the share of the budget that is spent, and the best so far in words.
    """
    goal = goal_of(
        {
            "speedup": speedup,
            "latency_ms": latency_ms,
            "throughput": throughput,
            "flops": flops,
            "cosine": cosine,
            "agreement": agreement,
        }
    )
    kinds = kinds_of(methods)
    _check(images, batch_size, trials, minutes, repeats)
    where = Runtime(runtime, int8, images.cpu(), batch_size)
    dense = clone(model).eval()
    setting = _setting(dense, images, runtime, int8, batch_size)
    place = None if directory is None else check_place(Path(directory))
    device = next(dense.parameters()).device
    if not where.in_torch and device.type != "cpu":
        raise MethodError(f"runtime {runtime!r} runs on the CPU here: give model.cpu()")
    measures = Measures(dense, images.to(device), where, Trials(setting, place))
    budget = Budget(60 * minutes * (1 - FINAL), trials)
    search = _search_for(goal)(measures, goal, kinds, budget, tell)
    best, stopped = _found(search, repeats)
    return _result(model, search, best, stopped)


def _search_for(goal: Goal) -> type[Search]:
    """How a goal is looked for."""
    if goal.is_near:
        return ForNearness
    return ForFlops if goal.name == "flops" else ForSpeed


def _found(search: Search, repeats: int) -> tuple[Candidate | None, bool]:
    """The best fold, and whether the search was stopped before its end."""
    if search.is_idle:
        return None, False
    try:
        search.run()
        return search.settle(repeats), False
    except KeyboardInterrupt:
        if search.best is None:
            raise
        return search.best, True


def _result(model: nn.Module, search: Search, best: Candidate | None, stopped: bool) -> Tuned:
    """The model as it is to be: folded, or dense where no fold is faster."""
    fastest = min((c.share for c in search.timed), default=None)
    if best is None and not search.is_idle and (fastest is None or fastest.median < 1):
        raise TuneError(_nearest(search))
    trial = best.trial if best is not None and best.share.high < 1 else None
    if trial is None:
        unfold(model)
    else:
        search.measures.fold(model, trial.method)
    return Tuned(
        model=model,
        goal=search.goal,
        setting=search.measures.trials.setting,
        trial=trial,
        nearest=best.share if best else fastest,
        idle=search.is_idle,
        stopped=stopped,
        dense=search.measures.dense_rate,
        fidelity=None if trial is None else search.measures.served_fidelity(trial.method),
        images=len(search.measures.images),
        tokens=search.layout.tokens,
        trials=tuple(search.measures.trials),
    )


def _nearest(search: Search) -> str:
    """What to ask for in place of what no fold keeps."""
    goal, trials = search.goal, search.measures.trials
    if goal.is_near:
        near = max((figure(trial.fidelity, goal.name) for trial in trials), default=0.0)
        what = f"the nearest of {len(trials)} folds has {goal.name}={near:.4f}"
        return f"{goal} was not kept by any fold here: {what}: ask for less"
    fastest = min(search.timed, key=lambda candidate: candidate.share.median)
    return (
        f"{goal} was not kept by any fold here: the fastest of {len(trials)} is "
        f"{1 / fastest.share.median:.2f} times as fast as the dense model "
        f"({search.measures.dense_seconds * 1e3:.1f} ms a batch): ask for less, or give more "
        "minutes, larger batches or images"
    )


def _setting(
    dense: nn.Module, images: Tensor, runtime: str, int8: bool, batch_size: int
) -> Setting:
    return Setting(
        weights=fingerprint(dense.state_dict()),
        images=fingerprint({"images": images}),
        runtime=runtime,
        int8=int8,
        batch_size=batch_size,
        machine=machine(),
        versions=versions(),
    )


OWN = {TRIALS, CARD, PAGE, PICTURE, PLAN, WEIGHTS}
"""What a tuning puts into its directory."""


def check_place(directory: Path) -> Path:
    """Refuse a directory that holds anything but an earlier tuning."""
    if directory.is_file():
        raise DataError(f"{directory} is a file: give a directory")
    others = {path.name for path in directory.iterdir()} - OWN if directory.is_dir() else set()
    if visible := sorted(name for name in others if not name.startswith(".")):
        raise DataError(f"{directory} holds other files ({visible[0]}): give a new directory")
    return directory


def _check(
    images: object, batch_size: object, trials: object, minutes: object, repeats: object
) -> None:
    if not isinstance(images, Tensor) or images.dim() != 4 or not len(images):
        raise DataError(
            "images: expected a tensor [N, C, H, W], prepared for the model, of some hundred"
        )
    whole = {"batch_size": batch_size, "trials": trials, "repeats": repeats}
    for name, value in whole.items():
        if not (name == "trials" and value is None) and (type(value) is not int or value < 1):
            raise MethodError(f"{name}={value!r}: expected a whole number from 1 up")
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not minutes > 0:
        raise MethodError(f"minutes={minutes!r}: expected a number above 0")
