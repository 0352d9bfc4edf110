"""Which patches matter in a model, on average over images: what PruneMerge starts from.

The score of a patch in a block is `|sum A dL/dA|` over images, heads and queries, for its column of
the attention `A`. With `out = A v`, that sum is `v . dL/dv`: the gradient of the values knows it,
and attention stays fused.
"""

import functools
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vitfold.errors import DataError, MethodError, one_line
from vitfold.files import whole, writing
from vitfold.folding.blocks.own import OwnAttend
from vitfold.folding.families import find
from vitfold.folding.fold import clone, fold
from vitfold.methods.base import Base
from vitfold.methods.checks import check_blocks, check_number, check_share, check_whole
from vitfold.methods.prune_merge.method import PruneMerge, rounded
from vitfold.methods.steps import Look, Plan
from vitfold.saving.weights import fingerprint
from vitfold.tokens.layout import Layout
from vitfold.tokens.modes import evaluating
from vitfold.tokens.state import Ledger
from vitfold.tools.answers import answers, cross_entropy
from vitfold.tools.measure import Progress
from vitfold.tools.rates import keeping, reaching
from vitfold.tools.validate import Batch

ITERATIONS = 250

SAVE_EVERY = 10


def search(
    model: nn.Module,
    loader: Iterable[Any],
    keep: float | None = None,
    prune: float | None = None,
    blocks: Sequence[int] | None = None,
    scope: str = "global",
    grouping: str = "runs",
    shortcut: bool = True,
    iterations: int = ITERATIONS,
    *,
    flops: float | None = None,
    resume: Path | str | None = None,
    progress: Progress = lambda: None,
) -> PruneMerge:
    """Score the patches of a model by its gradients on labelled images, and find what merges.

    The model itself stays as it is. The same batches in the same order give the same method.

    loader: batches of images and labels; begun again where it is shorter than the iterations, and
        where it can be.
    keep: the share of patches that stay alone (0.6 where `flops` is not given).
    prune: the share that goes around blocks, at most; less where more stay alone. Where it is not
        given 0.1, and more only if `flops` cannot be reached without.
    blocks: which ones to compress; all but the first quarter where it is not given.
    iterations: how many batches.
    flops: the share of the dense FLOPs to reach, in place of `keep`.
    resume: a file for the scores so far, from which a search of the same begins or goes on.
    """
    check_whole("iterations", iterations, least=1)
    if flops is not None:
        check_share(flops)
        if keep is not None:
            raise MethodError(f"keep={keep!r} and flops={flops!r}: give one of the two")
    depth = find(model).depth
    some = list(range(depth // 4, depth)) if blocks is None else blocks
    usual = PruneMerge.prune if prune is None else prune
    every = PruneMerge(0.0, usual, some, scope, grouping, shortcut)  # type: ignore[arg-type]
    check_blocks(every.blocks, depth)
    chosen = tuple(every.blocks or ())
    if not chosen:
        raise MethodError(f"blocks={blocks!r}: expected at least one block")
    alone = PruneMerge.keep if keep is None else keep
    check_number("keep", alone, 0, 1)
    asked = every
    if flops is None:  # less goes around where nobody said how much
        asked = replace(every, keep=alone) if prune is not None else keeping(every, alone)
    batches = _again(loader, iterations)
    first = next(batches, None)
    if first is None:
        raise DataError("no images to score patches on: the loader is empty")
    grid = _grid(model, first[0])
    scores = Scores.start(model, chosen, grid, first, iterations, resume)
    scores.gather(model, chosen, itertools.chain([first], batches), progress)
    found = replace(asked, grid=grid, scores=scores.rounded())
    return found if flops is None else reaching(model, found, flops, first[0][:1], prune is None)


def _grid(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """Of the patches of these images."""
    found = find(model)
    grid = found.grid({found.arguments[0]: images})
    if grid is None:
        raise DataError("these images have no common patch grid: give images of one size")
    return grid


def _again(loader: Iterable[Any], iterations: int) -> Iterator[Batch]:
    """So many batches, from the beginning again where there are fewer."""
    left = iterations
    while left:
        before = left
        for batch in itertools.islice(_iterated(loader), left):
            left -= 1
            yield _labelled(batch)
        if left == before:
            if left < iterations:
                warnings.warn(
                    f"the loader gave {iterations - left} batches of {iterations}, and cannot be "
                    "begun again: scores are of those",
                    stacklevel=4,
                )
            return


def _iterated(loader: Any) -> Iterator[Any]:
    if isinstance(loader, Tensor) or not hasattr(loader, "__iter__"):
        raise DataError(f"a {type(loader).__name__} gives no batches: give a DataLoader, or a list")
    return iter(loader)


def _labelled(batch: Any) -> Batch:
    """Images and their labels, or an error that says what was there."""
    pair = isinstance(batch, list | tuple) and len(batch) == 2
    images, labels = batch if pair else (None, None)
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise DataError(f"batches of images and labels are needed, got a {type(batch).__name__}")
    if images.dim() != 4 or not images.is_floating_point() or len(images) != len(labels):
        raise DataError(
            f"a batch of {images.dtype} {list(images.shape)} with {list(labels.shape)} labels: "
            "expected images [B, C, H, W] as the model takes them, and a label for each"
        )
    if not len(images):
        raise DataError("a batch without images: leave it out")
    if labels.is_floating_point():
        return images, labels
    if labels.dim() not in (1, 3):
        raise DataError(f"labels {list(labels.shape)}: expected [B], or [B, H, W] for pixels")
    return images, labels.long()


@dataclass
class Scores:
    """What was gathered so far.

    about: what they are of: a model, its blocks, their patches.
    sums: `[blocks, patches]`.
    batches: how many are in them.
    file: where they are kept, if anywhere.
    """

    about: dict[str, str]
    sums: Tensor
    batches: int = 0
    file: Path | None = None

    @classmethod
    def start(
        cls,
        model: nn.Module,
        blocks: Sequence[int],
        grid: tuple[int, int],
        first: Batch,
        iterations: int,
        file: Path | str | None,
    ) -> "Scores":
        """None, or those in the file, if they are of the same model, blocks and images."""
        sums = torch.zeros(len(blocks), math.prod(grid), dtype=torch.float64)
        if file is None:
            return cls({}, sums)
        file = Path(file)
        if file.is_dir():
            raise DataError(f"{file} is a directory: give a file in it, as scores.safetensors")
        if not file.parent.is_dir():
            raise DataError(f"{file}: there is no directory {file.parent}")
        about = {
            "model": fingerprint(clone(model).state_dict()),
            "blocks": str(list(blocks)),
            "patches": str(math.prod(grid)),
            "first batch": fingerprint(dict(zip(("images", "labels"), first, strict=True))),
        }
        blank = cls(about, sums, file=file)
        return blank._read(iterations) if file.exists() else blank

    def _read(self, iterations: int) -> "Scores":
        try:
            with safe_open(self.file, framework="pt") as file:
                about = file.metadata()
                sums, batches = file.get_tensor("sums"), int(file.get_tensor("batches"))
        except Exception as error:  # the library says in many ways that a file is broken
            why = one_line(error)
            raise DataError(f"{self.file}: cannot be read: {why}; delete it") from error
        other = [name for name, value in self.about.items() if (about or {}).get(name) != value]
        if other:
            raise DataError(f"{self.file}: scores of another {' and '.join(other)}: delete it")
        if batches > iterations:
            raise DataError(
                f"{self.file}: scores of {batches} batches, more than iterations={iterations}: "
                "ask for as many, or delete it"
            )
        return replace(self, sums=sums, batches=batches)

    def gather(
        self, model: nn.Module, blocks: Sequence[int], batches: Iterable[Batch], progress: Progress
    ) -> None:
        """Add the scores of the batches that are missing."""
        watch = Watch({block: [] for block in blocks})
        watched = fold(clone(model), watch)
        for number, (images, labels) in enumerate(batches):
            if number >= self.batches:
                self.sums += self._of(watch.scores(watched, images, labels), number)
                self.batches += 1
                if self.batches % SAVE_EVERY == 0:
                    self.save()
            progress()
        self.save()

    def _of(self, scores: Tensor, number: int) -> Tensor:
        """Those of one batch, where they are of use."""
        if scores.shape != self.sums.shape:
            raise DataError(
                f"batch {number} has {scores.shape[1]} patches an image, the first "
                f"{self.sums.shape[1]}: give images of one size"
            )
        if not scores.isfinite().all():
            raise DataError(f"batch {number}: scores are not finite: its images or the weights are")
        return scores

    def save(self) -> None:
        """Keep them, so that the file is whole at every moment."""
        if self.file is None:
            return
        tensors = {"sums": self.sums, "batches": torch.tensor(self.batches)}
        with writing(self.file, DataError), whole(self.file) as part:
            save_file(tensors, part, metadata=self.about)

    def rounded(self) -> tuple[tuple[float, ...], ...]:
        """The mean over batches, with as many digits as matter."""
        if not self.sums.any():
            raise DataError(
                "no gradient reaches any patch: are all labels ignored, or the head's weights zero?"
            )
        return rounded(self.sums / self.batches)


@dataclass(frozen=True)
class Watch(Base):
    """Does nothing, and keeps the values that attention weighs.

    seen: of every block that is watched, those of the last call.
    """

    seen: dict[int, list[Tensor]] = field(default_factory=dict, compare=False)

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        """Looks at the blocks that are watched."""
        return tuple(
            Look(functools.partial(Valued, self.seen[block])) if block in self.seen else None
            for block in range(layout.depth)
        )

    def scores(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """`[blocks, patches]` of one batch."""
        prefix = find(model).prefix
        for values in self.seen.values():
            values.clear()
        weight = next(model.parameters())
        with torch.inference_mode(False), evaluating(model), torch.enable_grad():
            # A copy: of what was made in inference mode there are no gradients.
            pixels = images.to(weight.device, weight.dtype, copy=True).requires_grad_()
            said = answers(model, pixels)
            loss = cross_entropy(said, labels.to(weight.device, copy=True))
            # Blocks that are computed again on the way back will add to these.
            seen = [tuple(values) for values in self.seen.values()]
            slopes = iter(torch.autograd.grad(loss, [value for some in seen for value in some]))
        rows = [
            sum((_column(value, next(slopes)) for value in some), torch.zeros(())) for some in seen
        ]
        return torch.stack([row[prefix:].abs().double().cpu() for row in rows])


def _column(value: Tensor, slope: Tensor) -> Tensor:
    """`[N]`: the sum over images, heads and queries, from `[B, H, N, d]`."""
    batch, heads, tokens, _ = value.shape
    return (value.detach() * slope).sum(dim=(0, 1, 3)).float() / (batch * heads * tokens)


class Valued(OwnAttend):
    """Torch's attention; the values that it weighs are kept."""

    def __init__(
        self,
        values: list[Tensor],
        ledger: Ledger,
        given: Mapping[str, Any],
        proportional: bool,
        cue: str | None,
    ) -> None:
        super().__init__(ledger, given, proportional, cue)
        self.values = values

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
    ) -> tuple[Tensor, Tensor | None]:
        """What comes out; nothing is said of the attention received."""
        self.values.append(v)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale), None


PruneMerge.search = search
