"""What Prune and Merge is made of: `python benchmarks/ablation.py MODEL --data-dir D`.

One search for scores; then, at every share of the FLOPs and without training: shares over all
blocks or in each, runs or centres, with and without the shortcut; and on the first of these, the
matrices as they were found (restore is the pseudo-inverse of merge), with restore trained, and with
both trained, to say what the dense model says. Top-1 and agreement with the dense model on
held-out images: benchmarks/ablation-NAME.md.

    python benchmarks/ablation.py models/vit_cifar10_cpu_adamw --data-dir cifar10
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tables import HERE, markdown
from torch import Tensor, nn

import vitfold
from vitfold import PruneMerge
from vitfold.cli import options, show, values
from vitfold.cli.images import batches_of, shuffled_of
from vitfold.data import Source
from vitfold.folding.calls import fold_of
from vitfold.folding.fold import clone
from vitfold.methods.prune_merge.structure import GROUPINGS, SCOPES
from vitfold.saving.models import create_model
from vitfold.tools.answers import logits
from vitfold.tools.intervals import interval
from vitfold.tools.prune_merge.rates import fit_rates
from vitfold.tools.validate import Batch, Predictions, predict
from vitfold.train.objective import distillation
from vitfold.train.recipe import Distillation

COLUMNS = (
    "FLOPs", "scope", "grouping", "shortcut", "trained", "top-1", "95 %", "agrees with dense",
)  # fmt: skip
TRAINED = {"restore": ("restore",), "merge and restore": ("merge", "restore")}
SOFT = Distillation("soft", 1.0, 3.0)


def main(
    model: options.ModelName,
    data_dir: Annotated[Path, typer.Option(help="Holds the splits.")],
    train_split: Annotated[str, typer.Option(help="For scores and matrices.")] = "train[:90%]",
    split: options.Split = "test",
    limit: options.Limit = None,
    shares: Annotated[str, typer.Option(help="Of the dense FLOPs.")] = "0.65,0.5",
    iterations: Annotated[int, typer.Option(min=1, help="Of the search, 32 images each.")] = 250,
    steps: Annotated[int, typer.Option(min=1, help="Of training, 64 images each.")] = 150,
) -> None:
    """Search, fold, train briefly, and write the table."""
    dense = create_model(model, pretrained=True).eval()
    visits = Source("", data_dir, train_split)
    with show.bar("scoring patches", iterations) as progress:
        scored = shuffled_of(dense, visits, 32, iterations, 0, 0)
        result = PruneMerge.search(dense, scored, iterations=iterations, progress=progress)
    batches = list(batches_of(dense, Source("", data_dir, split), limit, 250, 0))
    taught = list(shuffled_of(dense, visits, 64, steps, 1, 0))
    rows = []
    output = predict(dense, batches)
    for row in candidates(dense, result, batches[0][0][:1], values.shares(shares), taught):
        *names, new = row
        rows.append([*names, *figures(predict(new.eval(), batches), output)])
        show.console.print(" | ".join(rows[-1]), markup=False)
    show.table("What Prune and Merge is made of", COLUMNS, rows)
    name = Path(model).name
    lines = [f"# {name}: {len(output.labels)} images", "", *markdown(COLUMNS, rows), ""]
    target = HERE / f"ablation-{name}.md"
    target.write_text("\n".join(lines), encoding="utf-8")
    show.written(target)


def candidates(
    dense: nn.Module, result: PruneMerge, image: Tensor, shares: list[float], taught: list[Batch]
) -> Iterator[tuple[Any, ...]]:
    """What is varied, in words, and the model."""
    for share in shares:
        for scope, grouping, shortcut in itertools.product(SCOPES, GROUPINGS, (True, False)):
            way = replace(result, scope=scope, grouping=grouping, shortcut=shortcut)
            new = vitfold.fold(clone(dense), fit_rates(dense, way, share, image))
            kind = (f"{share}", scope, grouping, "yes" if shortcut else "no")
            yield (*kind, "no", new)
            if (scope, grouping, shortcut) != (SCOPES[0], GROUPINGS[0], True):
                continue
            for name, parts in TRAINED.items():
                again = vitfold.fold(clone(dense), fold_of(new).method)
                train(again, dense, parts, taught)
                yield (*kind, name, again)


def train(model: nn.Module, dense: nn.Module, parts: tuple[str, ...], batches: list[Batch]) -> None:
    """Train some of the matrices to say what the dense model says."""
    learned = fold_of(model).learned
    assert learned is not None
    chosen = [p for n, p in learned.named_parameters() if n.partition(".")[0] in parts]
    optimizer = torch.optim.AdamW(chosen, lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    with show.bar("training " + " and ".join(parts), len(batches)) as progress:
        for images, _ in batches:
            with torch.no_grad():
                wanted = logits(dense, images)
            slopes = torch.autograd.grad(distillation(SOFT, logits(model, images), wanted), chosen)
            for values, slope in zip(chosen, slopes, strict=True):
                values.grad = slope
            optimizer.step()
            schedule.step()
            progress()


def figures(ours: Predictions, dense: Predictions) -> list[str]:
    """Top-1 with its interval, and the share of answers that are the dense model's."""
    right, images = int((ours.best[:, 0] == ours.labels).sum()), len(ours.labels)
    same = float((ours.best[:, 0] == dense.best[:, 0]).double().mean())
    low, high = interval(right, images)
    return [f"{right / images:.2%}", f"{low:.1%} to {high:.1%}", f"{same:.2%}"]


if __name__ == "__main__":
    torch.manual_seed(0)
    typer.run(main)
