"""How near features stay to the dense model's: `python benchmarks/features.py MODEL --data-dir D`.

For models whose outputs are features (DINO and the like): the cosine of the class token and of the
patches, each at its place, with those of the dense model, for methods side by side at the same
shares of the FLOPs, on photographs without labels; every fifth image, in sorted order, is what
Fisher looks at, and the others judge. Writes benchmarks/features-NAME-SIZE.md, a table after every
share.

    python benchmarks/features.py vit_small_patch14_saliency --data-dir imagenet-samples.tar
    python benchmarks/features.py vit_small_patch14_saliency --data-dir imagenet-samples.tar \\
        --img-size 518 --limit 24 --looks 24
"""

import warnings
from collections.abc import Callable
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from halves import called, halves
from judging import paired
from tables import HERE, markdown
from torch import Tensor, nn

import vitfold
from vitfold.cli import options, show
from vitfold.cli.work import models
from vitfold.data import Source
from vitfold.folding.families import find
from vitfold.folding.fold import clone
from vitfold.methods import Method
from vitfold.tools.intervals import mean_of
from vitfold.tools.measure import flops, random_inputs

SHARES = (0.75, 0.6, 0.5)
FISHER = "fisher"
METHODS: dict[str, Callable[..., Method]] = {
    "tome": vitfold.ToMe,
    "dfe": vitfold.DFE,
    "lgtm": vitfold.LGTM,
    "pitome": vitfold.PiToMe,
    "mctf": vitfold.MCTF,
    "ward": vitfold.Ward,
    FISHER: vitfold.Fisher,
    "dropping at random": lambda **kw: vitfold.Drop(cue="random", **kw),
}
AGAINST = "tome"
COLUMNS = ("method", "FLOPs, of dense", "class token", "against ToMe", "patches", "against ToMe")


@torch.inference_mode()
def features(model: nn.Module, batches: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """`[B, C]` class tokens and `[B, N, C]` patches of every batch."""
    prefix = find(model).prefix
    outputs = (model(batch).last_hidden_state for batch in batches)
    return [(output[:, 0], output[:, prefix:]) for output in outputs]


def nearness(ours: list[tuple[Tensor, Tensor]], dense: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """`[N]` cosines of class tokens, and of patches on average over their places."""
    parts = [
        (F.cosine_similarity(a, x, dim=-1), F.cosine_similarity(b, y, dim=-1).mean(dim=1))
        for (a, b), (x, y) in zip(ours, dense, strict=True)
    ]
    return [torch.cat(each).double() for each in zip(*parts, strict=True)]


def folded(dense: nn.Module, name: str, share: float, looked_at: Tensor) -> nn.Module:
    """The model with a method that costs that share."""
    with warnings.catch_warnings(action="ignore"):  # Fisher looks at images at once
        model = vitfold.fold(clone(dense), METHODS[name](flops=share))
    return vitfold.calibrate(model, looked_at) if name == FISHER else model


def rows(dense: nn.Module, share: float, looked_at: Tensor, batches: list[Tensor]) -> list[Any]:
    """Figures of all methods at one share."""
    truth, one = features(dense, batches), random_inputs(dense, 1)
    near: dict[str, list[Tensor]] = {}
    costs: dict[str, float] = {}
    with show.bar(f"{share} of the FLOPs", len(METHODS)) as progress:
        for name in METHODS:
            model = folded(dense, name, share, looked_at)
            near[name] = nearness(features(model, batches), truth)
            costs[name] = flops(model, one) / flops(dense, one)
            progress()
    order = sorted(near, key=lambda name: -float(near[name][1].mean()))
    return [_cells(name, costs[name], near[name], near[AGAINST]) for name in order]


def _cells(name: str, cost: float, ours: list[Tensor], others: list[Tensor]) -> list[str]:
    cells = [name, f"{cost:.3f}"]
    for mine, other in zip(ours, others, strict=True):
        mean, low, high = mean_of(mine, -1, 1)
        gain, half = paired(mine, other)
        cells.append(f"{mean:.4f} ({low:.4f} to {high:.4f})")
        cells.append("" if name == AGAINST else f"{gain:+.4f} ± {half:.4f}")
    return cells


def main(
    model: options.ModelName,
    data_dir: options.DataDirectory = None,
    split: options.Split = "validation",
    img_size: Annotated[int, typer.Option(help="Side of the images.")] = 224,
    limit: Annotated[int, typer.Option(help="Images that judge.")] = 100,
    looks: Annotated[int, typer.Option(help="Images that Fisher looks at.")] = 100,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1)] = 4,
) -> None:
    """Measure, and write the table."""
    dense = models.model(model, [f"img_size={img_size}"], True, None, torch.device("cpu"))
    dense = dense.float().eval()
    looked, judges = halves(dense, Source("", data_dir, split), 5, limit, batch_size)
    looked_at = torch.cat([images for images, _ in looked])
    looked_at = looked_at[:: max(1, -(-len(looked_at) // looks))]
    batches = [images for images, _ in judges]
    name = f"{called(model)}-{img_size}"
    lines = [f"# {called(model)} at {img_size} px: cosines with the dense features", ""]
    lines += [
        f"{sum(map(len, batches))} photographs; Fisher has looked at {len(looked_at)} others."
    ]
    target = HERE / f"features-{name}.md"
    for share in SHARES:
        cells = rows(dense, share, looked_at, batches)
        show.table(f"{name} at {share} of the FLOPs", COLUMNS, cells)
        lines += ["", f"## {share} of the FLOPs", "", *markdown(COLUMNS, cells)]
        target.write_text("\n".join([*lines, ""]), encoding="utf-8")
        show.written(target)


if __name__ == "__main__":
    typer.run(main)
