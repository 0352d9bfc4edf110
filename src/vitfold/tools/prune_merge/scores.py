"""Scores of patches: how much each matters in every block of a model, on average over images.

The score of a patch in a block is `|sum A dL/dA|` over images, heads and queries, for its column of
the attention `A`. With `out = A v`, that sum is `v . dL/dv`: the gradient of the values knows it,
and attention stays fused.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vitfold.errors import DataError, one_line
from vitfold.files import whole, writing
from vitfold.folding.families import find
from vitfold.folding.fold import clone, fold
from vitfold.methods.base import Base
from vitfold.methods.prune_merge.method import rounded
from vitfold.methods.step import Plan, Step
from vitfold.tokens.layout import Layout
from vitfold.tokens.modes import evaluating
from vitfold.tools.answers import answers, cross_entropy
from vitfold.tools.digest import fingerprint
from vitfold.tools.measure import Progress
from vitfold.tools.validate import Batch

SAVE_EVERY = 10
"""Batches after which the scores so far are kept."""


@dataclass
class Scores:
    """Scores of patches, summed over batches so far.

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
        """Empty scores, or those in the file, if they are of the same model, blocks and images."""
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
        watch = Valued({block: [] for block in blocks})
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
        """The scores of one batch; refused where they are of no use."""
        if scores.shape != self.sums.shape:
            raise DataError(
                f"batch {number} has {scores.shape[1]} patches an image, the first "
                f"{self.sums.shape[1]}: give images of one size"
            )
        if not scores.isfinite().all():
            raise DataError(f"batch {number}: scores are not finite: its images or the weights are")
        return scores

    def save(self) -> None:
        """Write the scores; the file is complete at every moment."""
        if self.file is None:
            return
        tensors = {"sums": self.sums, "batches": torch.tensor(self.batches)}
        with writing(self.file, DataError), whole(self.file) as part:
            save_file(tensors, part, metadata=self.about)

    def rounded(self) -> tuple[tuple[float, ...], ...]:
        """The mean scores over batches, with as many digits as matter."""
        if not self.sums.any():
            raise DataError(
                "no gradient reaches any patch: are all labels ignored, or the head's weights zero?"
            )
        return rounded(self.sums / self.batches)


@dataclass(frozen=True)
class Valued(Base):
    """A method that changes nothing, and keeps the values that attention weighs.

    values: of every block that is watched, those of the last call.
    """

    values: dict[int, list[Tensor]] = field(default_factory=dict, compare=False)

    def plan(self, layout: Layout, schedule: tuple[int, ...]) -> Plan:
        """Steps that look at the attention of the scored blocks."""
        return tuple(
            Step(watch=functools.partial(_keep, self.values[block]))
            if block in self.values
            else None
            for block in range(layout.depth)
        )

    def scores(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """`[blocks, patches]` of one batch."""
        prefix = find(model).prefix
        for values in self.values.values():
            values.clear()
        weight = next(model.parameters())
        with torch.inference_mode(False), evaluating(model), torch.enable_grad():
            # A copy: of what was made in inference mode there are no gradients.
            pixels = images.to(weight.device, weight.dtype, copy=True).requires_grad_()
            outputs = answers(model, pixels)
            loss = cross_entropy(outputs, labels.to(weight.device, copy=True))
            # Blocks that are computed again on the way back will add to these.
            kept = [tuple(values) for values in self.values.values()]
            slopes = iter(torch.autograd.grad(loss, [value for some in kept for value in some]))
        rows = [
            sum((_column(value, next(slopes)) for value in some), torch.zeros(())) for some in kept
        ]
        return torch.stack([row[prefix:].abs().double().cpu() for row in rows])


def _column(value: Tensor, slope: Tensor) -> Tensor:
    """`[N]`: the sum over images, heads and queries, from `[B, H, N, d]`."""
    batch, heads, tokens, _ = value.shape
    return (value.detach() * slope).sum(dim=(0, 1, 3)).float() / (batch * heads * tokens)


def _keep(values: list[Tensor], _q: Tensor, _k: Tensor, v: Tensor) -> None:
    values.append(v)
