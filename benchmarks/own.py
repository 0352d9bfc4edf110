"""What calibration is worth against others' methods: `python benchmarks/own.py MODEL --data-dir D`.

Every fifth image, in sorted order, chooses: for others' methods the best cue, the best number of
dense blocks and, where a paper leaves things open, the best form (rivals.py); for ours the
directions and the heights of every block, and for ours without numbers of an image's own what such
images lose on average. The rest judges, once: divergence from the dense model, agreement with it,
top-1; and the paired difference from ours, by a bootstrap over images.
What was computed is kept in --output, so that a run goes on where it was stopped. Writes
benchmarks/own-NAME.md.

    python benchmarks/own.py deit_tiny_imagenet/model.py:build --data-dir imagenet-samples.tar
    python benchmarks/own.py models/vit_cifar10_cpu_adamw --data-dir cifar10 --split test \\
        --limit 2500
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from halves import called
from rivals import ATM, cost_alone, fitted, transforming
from safetensors.torch import load_file, save_file
from tables import HERE, markdown
from torch import Tensor, nn

import vitfold
from vitfold import (
    DFE,
    LGTM,
    MCTF,
    DiffRate,
    FisherCut,
    MethodError,
    PiToMe,
    ToMe,
    Ward,
)  # fmt: skip
from vitfold.cli import options, show
from vitfold.cli.images import batches_of
from vitfold.cli.work import models
from vitfold.data import Source
from vitfold.folding.calls import fold_of
from vitfold.folding.fold import clone
from vitfold.methods import Base
from vitfold.tools.answers import logits
from vitfold.tools.measure import flops, random_inputs

SHARES = (0.75, 0.6, 0.5)
CUES = ("k", "x")
FIFTH = 5
BATCH = 16
DRAWS = 10_000
COLUMNS = (
    "fold", "share", "KL x 1000", "KL more than ours", "agreement", "agreement less than ours",
    "top-1",
)  # fmt: skip


def rivals(
    share: float, skips: Sequence[int], choose: "Answers"
) -> dict[str, Callable[[], Sequence[Base]]]:
    """Others' methods with the options that are chosen from."""
    return {
        "ToMe": lambda: [ToMe(flops=share, cue=cue) for cue in CUES],
        "DFE": lambda: [
            DFE(flops=share, cue=cue, skip=skip) for cue in CUES for skip in skips if skip
        ],
        "LGTM": lambda: [LGTM(flops=share, cue=cue, skip=skip) for cue in CUES for skip in skips],
        "PiToMe": lambda: [
            PiToMe(flops=share, cue=cue, skip=skip) for cue in CUES for skip in (0, 2)
        ],
        "MCTF": lambda: [MCTF(flops=share)],
        "DiffRate": lambda: [DiffRate(flops=share)],
        "ATM": lambda: fitted(choose.model, choose.images, share),
        "Token Transforming": lambda: [*transforming(share)],
    }


class Answers:
    """Logits by name, in a file."""

    def __init__(self, path: Path, model: nn.Module, images: Tensor) -> None:
        self.path, self.model, self.images = path, model, images
        self.known: dict[str, Tensor] = load_file(path) if path.exists() else {}

    def of(self, method: Base | None, folded: nn.Module | None = None) -> Tensor:
        """`[N, classes]`: what the model says, folded so.

        folded: where the method has looked at images.
        """
        name = "dense" if method is None else str(method)
        if name not in self.known:
            new = clone(self.model) if method is None else folded
            new = vitfold.fold(clone(self.model), method) if new is None and method else new
            assert new is not None
            with torch.inference_mode():
                batches = self.images.split(1 if isinstance(method, ATM) else BATCH)
                parts = [logits(new, part) for part in batches]
            self.known[name] = torch.cat(parts).contiguous()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(self.known, self.path)
        return self.known[name]

    def divergence(self, method: Base) -> Tensor:
        """`[N]`."""
        ours, dense = (x.double().log_softmax(dim=1) for x in (self.of(method), self.of(None)))
        return F.kl_div(ours, dense, reduction="none", log_target=True).sum(dim=1)

    def agrees(self, method: Base) -> Tensor:
        """`[N]`, ones and zeros."""
        return (self.of(method).argmax(dim=1) == self.of(None).argmax(dim=1)).double()


def chosen(answers: Answers, methods: Sequence[Base]) -> Base:
    """Of these the one that diverges least on the images that choose."""
    result: list[tuple[float, Base]] = []
    for method in methods:
        try:
            result.append((float(answers.divergence(method).mean()), method))
        except MethodError as error:  # out of reach
            show.note(f"{method}: {error}")
    return min(result, key=lambda pair: pair[0])[1]


def calibrated(
    path: Path, choose: Answers, method: Base, cues: Sequence[str] = (), place: bool = False
) -> nn.Module:
    """A model with what these images give the method; looked up where that is known."""
    if path.exists():
        return vitfold.load(path, clone(choose.model))
    with warnings.catch_warnings(action="ignore"):  # it is calibrated at once
        model = vitfold.fold(clone(choose.model), method)
    vitfold.calibrate(model, choose.images, cues=cues, place=place)
    vitfold.save(model, path)
    return model


def between(ours: Tensor, other: Tensor) -> tuple[float, float, float]:
    """The mean difference of the other from ours, and its 95 % interval by drawing images anew."""
    gap = other - ours
    draws = torch.randint(len(gap), (DRAWS, len(gap)), generator=torch.Generator().manual_seed(0))
    low, high = gap[draws].mean(dim=1).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return float(gap.mean()), low, high


def share_of(judge: Answers, method: Base, folded: nn.Module | None) -> float:
    """The share of the dense FLOPs; of what images decide, on some of them."""
    new = vitfold.fold(clone(judge.model), method) if folded is None else folded
    if isinstance(method, ATM):
        return cost_alone(new, judge.images[::FIFTH]) / flops(judge.model, judge.images[:1])
    some = random_inputs(judge.model, 1) if folded is None else judge.images[::FIFTH]
    return flops(new, some) / flops(judge.model, some)


def row(
    name: str,
    method: Base,
    ours: Base,
    judge: Answers,
    labels: Tensor,
    folded: nn.Module | None = None,
) -> list[str]:
    """Figures of one fold, beside ours."""
    near, agree = judge.divergence(method), judge.agrees(method)
    more = [1000 * x for x in between(judge.divergence(ours), near)]
    less = [100 * x for x in between(agree, judge.agrees(ours))]
    right = (judge.of(method).argmax(dim=1) == labels).double()
    return [
        f"{name}: {method}",
        f"{share_of(judge, method, folded):.3f}",
        f"{1000 * float(near.mean()):.1f}",
        "" if method == ours else "{:+.1f} ({:+.1f} to {:+.1f})".format(*more),
        f"{float(agree.mean()):.1%}",
        "" if method == ours else "{:+.1f} ({:+.1f} to {:+.1f})".format(*less),
        f"{float(right.mean()):.1%}",
    ]


def main(
    model: options.ModelName,
    data_dir: options.DataDirectory = None,
    split: options.Split = "validation",
    limit: Annotated[int, typer.Option(help="Images, evenly spaced.")] = 1000,
    looks: Annotated[int, typer.Option(help="How many choose, at most.")] = 200,
    shares: Annotated[str, typer.Option(help="Of the dense FLOPs.")] = "0.75,0.6,0.5",
    skips: Annotated[str, typer.Option(help="Dense blocks of others' methods.")] = "0,1,2,3,4,5",
    both: Annotated[bool, typer.Option(help="Calibrate ToMe and Ward, too.")] = True,
    others: Annotated[
        str, typer.Option(help="Only those, with commas between.", show_default="all")
    ] = "",
    output: Annotated[Path, typer.Option(help="For what was computed.")] = Path("local"),
) -> None:
    """Choose, judge, and write the table."""
    dense = models.model(model, [], True, None, torch.device("cpu")).eval()
    name = called(model)
    batches = list(batches_of(dense, Source("", data_dir, split), limit, 250, 0))
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    fifth = torch.arange(len(images)) % FIFTH == 0
    some = images[fifth]
    choose = Answers(
        output / f"own-{name}-choose.safetensors", dense, some[:: -(-len(some) // looks)]
    )
    judge = Answers(output / f"own-{name}-judge.safetensors", dense, images[~fifth])
    lines = [f"# {name}: {int((~fifth).sum())} images, chosen on {len(choose.images)} others", ""]
    target = HERE / f"own-{name}.md"
    for share in map(float, shares.split(",")):
        folder = output / f"own-{name}-{share}"
        cut = calibrated(folder / "fishercut", choose, FisherCut(flops=share), place=True)
        even = vitfold.freeze(copy.deepcopy(cut), choose.images)
        ours = {fold_of(model).method: model for model in (cut, even)}
        for method, folded in ours.items():
            judge.of(method, folded)
        first, second = ours
        kinds = rivals(share, [int(skip) for skip in skips.split(",")], choose)
        asked = others.split(",") if others else kinds
        folds = {
            "ours, by image": first,
            "ours": second,
            **{
                f"{kind}, best of {len(those)}": chosen(choose, those)
                for kind in asked
                for those in [kinds[kind]()]
            },
            "Ward": Ward(flops=share),
        }
        if both:
            for kind in (ToMe, Ward):
                placed = calibrated(folder / kind.name, choose, kind(flops=share), CUES)
                folds[f"{kind.__name__} calibrated"] = fold_of(placed).method
        rows = [
            row(kind, fold, first, judge, labels[~fifth], ours.get(fold))
            for kind, fold in folds.items()
        ]
        show.table(f"{name} at {share} of the FLOPs", COLUMNS, rows)
        lines += [f"## {share} of the FLOPs", "", *markdown(COLUMNS, rows), ""]
        target.write_text("\n".join(lines), encoding="utf-8")
        show.written(target)


if __name__ == "__main__":
    torch.manual_seed(0)
    typer.run(main)
