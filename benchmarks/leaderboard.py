"""All methods without training on equal terms: `python benchmarks/leaderboard.py MODEL ...`.

Every method at the same shares of the dense FLOPs, on the same labelled images, each prepared once,
beside the two baselines that any method has to beat, and what was calibrated or trained on other
images (--trained DIR). Differences are paired: all saw the same images. What was measured of every
image is kept in --output, so a run goes on where it was stopped. Writes
benchmarks/leaderboard-NAME.md, and the same as rows for `vitfold report`.

    python benchmarks/leaderboard.py deit_tiny_imagenet/model.py:build \
        --data-dir imagenet-samples.tar --every 5
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from halves import called, halves
from judging import Judge, Kept, Numbers, geometric, paired
from tables import HERE, markdown
from torch import Tensor, nn

import vitfold
from vitfold.cli import options, show, values
from vitfold.cli.work import models
from vitfold.data import Source
from vitfold.errors import MethodError
from vitfold.folding.calls import fold_of
from vitfold.folding.families import find
from vitfold.folding.flops import cost
from vitfold.folding.fold import clone
from vitfold.lab.candidate import baselines, detail, timed_trunk
from vitfold.lab.report.columns import GFLOPS
from vitfold.tools import results
from vitfold.tools.baselines import DENSE
from vitfold.tools.intervals import Estimate, mean_of, share_of
from vitfold.tools.measure import compare
from vitfold.tools.validate import Batch

SHARES = (0.6, 0.5, 0.75)
AGAINST = "tome"
"""The method that all others are set beside, image by image."""
BATCH, ROUNDS = 8, 7
"""Of timings."""


@dataclass(frozen=True)
class Entry:
    """One candidate; of the dense model the share is 1."""

    name: str
    share: float
    make: Callable[[], nn.Module]

    @property
    def key(self) -> str:
        """What tells it from others in the file of what was measured."""
        return f"{self.name} {self.share}"


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "tome": ("tome", {}),
    "pitome": ("pitome", {}),
    "pitome x skip 2": ("pitome", {"cue": "x", "skip": 2}),
    "dfe": ("dfe", {}),
    "ward": ("ward", {}),
    "mctf": ("mctf", {}),
    "lgtm": ("lgtm", {}),
    "ward early": ("ward", {"inflection": -0.5}),
    "diffrate": ("diffrate", {}),
    "ward k": ("ward", {"cue": "k"}),
    "evit": ("evit", {}),
    "tome x_pre": ("tome", {"cue": "x_pre"}),
    "tome-around": ("tome-around", {}),
    "drop x_pre": ("drop", {}),
}
"""Methods and options, by what they are called in the table; first the name of the method."""

GEOMETRIC = ("pitome", "tome", "mctf")
"""Methods that are tried with the same share of patches leaving every block, too."""


def entries(model: nn.Module, trained: Sequence[Path] = ()) -> list[Entry]:
    """The dense model, the baselines, and every method at every share, one share after another: a
    run that is stopped has whole tables.

    trained: directories of folds that have learned or looked at other images.
    """
    every = [Entry(b.method, b.flops, b.make) for b in baselines(model, SHARES, show.note)]
    for name, (method, options_) in VARIANTS.items():
        for share in SHARES:
            make = functools.partial(_at_share, model, method, {**options_, "flops": share})
            every.append(Entry(name, share, make))
    for name in GEOMETRIC:
        for share in SHARES:
            make = functools.partial(geometric, model, name, share)
            every.append(Entry(f"{name} geometric", share, make))
    every += [_learned(model, place) for place in trained]
    by_share = sorted(every, key=lambda entry: SHARES.index(entry.share))
    return [Entry(DENSE, 1.0, lambda: clone(model)), *by_share]


def _learned(model: nn.Module, place: Path) -> Entry:
    """A fold from a directory, called by its method; `own.py` and `vitfold train` write such."""
    folded = vitfold.load(place, clone(model))
    method = fold_of(folded).method
    asked = getattr(method, "flops", None) or cost(find(folded)) / cost(find(model))
    nearest = min(SHARES, key=lambda share: abs(share - asked))
    return Entry(f"{method.name}, from other images", nearest, lambda: folded)


def _at_share(model: nn.Module, method: str, options_: dict[str, Any]) -> nn.Module:
    return vitfold.fold(clone(model), method, **options_)


def row(entry: Entry, numbers: Numbers, beside: Numbers, dense: Numbers) -> dict[str, Any]:
    """The figures of one candidate, by the names that `vitfold report` knows.

    beside: those of the method that all are compared with, at the same share.
    """
    bounds = functools.partial(mean_of, least=0, most=math.inf)
    estimates: dict[str, Estimate] = {
        "top1": share_of(numbers["right"]),
        "agreement": share_of(numbers["agreement"]),
        "kl": bounds(numbers["kl"]),
        "cosine": mean_of(numbers["cosine"], -1, 1),
    }
    flat: dict[str, Any] = {"method": entry.name, "flops": entry.share}
    flat["images"] = len(numbers["right"])
    for name, (mean, low, high) in estimates.items():
        flat |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    pairs = {"top1_against_dense": paired(numbers["right"], dense["right"])}
    for name in ("agreement", "kl"):
        pairs[f"{name}_against_{AGAINST}"] = paired(numbers[name], beside[name])
    for name, (gain, half) in pairs.items():
        flat |= {name: gain, f"{name}_half": half}
    return flat


COLUMNS = (
    "method", "FLOPs, of dense", "KL x 1000", f"against {AGAINST}, paired", "agrees with dense",
    f"against {AGAINST}, paired", "top-1", "against dense, paired", "cosine",
)  # fmt: skip


def cells(flat: dict[str, Any]) -> list[str]:
    """A row of the table."""

    def change(name: str, by: int) -> str:
        return f"{by * flat[name]:+.1f} ± {by * flat[f'{name}_half']:.1f}"

    return [
        flat["method"],
        f"{flat['flops_share']:.3f}",
        f"{1000 * flat['kl']:.0f} ({1000 * flat['kl_low']:.0f} to {1000 * flat['kl_high']:.0f})",
        change(f"kl_against_{AGAINST}", 1000),
        "{agreement:.1%} ({agreement_low:.1%} to {agreement_high:.1%})".format(**flat),
        change(f"agreement_against_{AGAINST}", 100),
        f"{flat['top1']:.1%}",
        change("top1_against_dense", 100),
        f"{flat['cosine']:.4f}",
        *([f"{flat[SPEED]:.2f}"] if SPEED in flat else []),
    ]


SPEED = f"speedup_b{BATCH}"


def rows_of(every: Sequence[Entry], kept: Kept, timed: Tensor | None) -> Iterator[dict[str, Any]]:
    """All rows, with what they cost.

    timed: images whose time is measured, too.
    """
    every = [entry for entry in every if entry.key in kept]
    named = {(entry.name, entry.share): entry for entry in every}
    dense = kept[named[DENSE, 1.0].key]
    whole = float(dense["gflops"])
    speeds = {} if timed is None else _speeds(every, timed)
    for entry in every:
        beside = named.get((AGAINST, entry.share), entry)
        flat = row(entry, kept[entry.key], kept[beside.key], dense)
        flat["detail"], flat["gflops"] = detail(entry.make()), float(kept[entry.key]["gflops"])
        yield flat | {"flops_share": flat["gflops"] / whole} | speeds.get(entry.key, {})


def _speeds(every: list[Entry], images: Tensor) -> dict[str, dict[str, float]]:
    """Images per second in eager torch, measured in turn."""
    made = {entry.key: timed_trunk(entry.make()) for entry in every}
    rates = compare(made, images, repeats=ROUNDS)
    whole = rates[every[0].key].median
    return {
        key: {f"images_per_second_b{BATCH}": rate.median, SPEED: rate.median / whole}
        for key, rate in rates.items()
    }


def main(
    model: options.ModelName,
    dataset: options.Dataset = "",
    data_dir: options.DataDirectory = None,
    split: options.Split = "validation",
    every: Annotated[
        int, typer.Option(min=2, help="Every so many-th image is kept for choosing.")
    ] = 5,
    limit: options.Limit = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1)] = 50,
    device: options.Device = "cpu",
    output: Annotated[Path, typer.Option(help="For what was measured.")] = Path("local"),
    timed: Annotated[bool, typer.Option("--timed", help="Measure speed, too.")] = False,
    trained: Annotated[
        list[Path],
        typer.Option(metavar="DIR", help="A fold that has learned from other images, too."),
    ] = [],  # noqa: B006
) -> None:
    """Measure what is missing, and write the table."""
    dense = models.model(model, [], True, None, values.device(device))
    kept = Kept(output / f"leaderboard-{called(model)}.safetensors")
    those = entries(dense, trained)
    left = [entry for entry in those if entry.key not in kept]

    def judges() -> Iterable[Batch]:  # the table alone needs none
        return halves(dense, Source(dataset, data_dir, split), every, limit, batch_size)[1]

    if left:
        measure(Judge(dense, list(judges())), left, kept)
    some = next(iter(judges()))[0][:BATCH] if timed else None
    rows = list(rows_of(those, kept, some))
    place = Path(data_dir).name if data_dir else dataset
    where = "--data-dir" if data_dir else "--dataset"
    short = "/".join(Path(model).parts[-2:])
    command = f"python benchmarks/leaderboard.py {short} {where} {place} --every {every}"
    command += f" --limit {limit}" * (limit is not None) + " --timed" * timed
    command += "".join(f" --trained {Path(*place.parts[-2:])}" for place in trained)
    target = HERE / f"leaderboard-{called(model)}.md"
    about = {"command": command, "model": called(model), "versions": results.versions()}
    results.write(target.with_suffix(".json"), rows, about)
    target.write_text("\n".join(page(called(model), command, rows)), encoding="utf-8")
    show.written(target)


def measure(judge: Judge, left: list[Entry], kept: Kept) -> None:
    """What is missing, one candidate after another."""
    with show.bar("folding", len(left)) as progress:
        for entry in left:
            try:
                kept.add(entry.key, judge.measure(entry.make()))
            except MethodError as error:  # out of reach
                show.note(f"{entry.key}: {error}")
            progress()


def page(name: str, command: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of the page: a table for every share, the nearest to the dense model first."""
    dense = next(flat for flat in rows if flat["method"] == DENSE)
    columns = (*COLUMNS, f"speed, x dense, batch {BATCH}") if SPEED in dense else COLUMNS
    yield from (f"# {name}: methods without training", "", f"`{command}`", "")
    yield (
        f"{dense['images']} images, which nothing was chosen by; the dense model, of "
        f"{dense['gflops']:.2f} {GFLOPS}, has {dense['top1']:.1%} top-1 "
        f"({dense['top1_low']:.1%} to {dense['top1_high']:.1%}). Intervals are of 95 %; where it "
        "says paired, of the difference on the same images. Baselines are in italics."
    )
    if SPEED in dense:
        here = results.machine()
        yield (
            f"Speed is that of eager torch with {here['threads']} threads on {here['processor']}: "
            f"medians of {ROUNDS} rounds of all in turn, on the first {BATCH} images."
        )
    for share in sorted(SHARES, reverse=True):
        best = sorted((flat for flat in rows if flat["flops"] == share), key=lambda f: f["kl"])
        if best:
            yield from ("", f"## {share} of the dense FLOPs", "")
            yield from markdown(columns, map(_shown, best))
    yield ""


def _shown(flat: dict[str, Any]) -> list[str]:
    first, *others = cells(flat)
    return [f"*{first}*" if first.startswith("baseline") else first, *others]


if __name__ == "__main__":
    torch.manual_seed(0)
    typer.run(main)
