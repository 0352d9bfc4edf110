"""Whether a program that prepares pictures itself sees what Pillow shows, and answers as before."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vitfold.errors import ExportError
from vitfold.exporting.graph import Named, Outputs
from vitfold.exporting.pictures import Preparation
from vitfold.exporting.targets import Runner
from vitfold.exporting.verify import Agreement, batchwise, compare

LEVELS = 8.0
"""The most by which a value of a pixel may differ from Pillow's, of 255: of noise, that is."""

MEAN = 0.5
"""The most on average."""

NEAR = 0.99
"""The least cosine of what a program in eight bits gives with its preprocessing and without."""


@dataclass(frozen=True)
class Inside:
    """Preprocessing inside a program, beside that of timm by Pillow.

    takes: what the program takes under the name of its input.
    pictures: how many were looked at, of several sizes.
    largest, mean: differences of a pixel's values, of 255.
    agreement: of the whole program with eager torch on pixels as the program prepared them, in
        float32.
    cosine: of what the program gives with its preprocessing and without, in the form that is kept;
        the least.
    """

    takes: str
    pictures: int
    largest: float
    mean: float
    agreement: Agreement
    cosine: float


TAKES = "uint8 [B, H, W, 3], RGB, any height and width"


class Pictures:
    """Pictures of several sizes, as they are and as a program prepares them.

    batch_size: of the programs; None: any.
    """

    def __init__(
        self,
        preparation: Preparation,
        preparing: Callable[[Tensor], Tensor],
        batch_size: int | None,
    ) -> None:
        self.batch_size = batch_size
        self.names, self.stored = zip(*preparation.samples(), strict=True)
        self.prepared = torch.cat([preparing(each.unsqueeze(0)) for each in self.stored])
        wanted = torch.stack([preparation(Image.fromarray(each.numpy())) for each in self.stored])
        deviation = torch.tensor(preparation.std)[:, None, None]
        self.apart = ((self.prepared - wanted) * deviation * 255).abs()

    def check(self) -> None:
        """Refuse pixels that are not Pillow's."""
        worst = self.apart.flatten(1).amax(dim=1)
        if float(worst.amax()) > LEVELS or float(self.apart.mean()) > MEAN:
            raise ExportError(
                f"preprocessing in the program differs from Pillow's by {float(worst.amax()):.0f} "
                f"of 255 ({self.names[int(worst.argmax())]}): expected at most {LEVELS:.0f}, and "
                f"{MEAN} on average; nothing was kept"
            )

    def inside(self, model: Named, whole: Runner, kept: Runner, bare: Runner) -> Inside:
        """Compare a program that takes pictures with eager torch; refused where they differ.

        whole: it in float32.
        kept, bare: the one that is kept, and the same without preprocessing.
        """
        self.check()
        result = self._answers(whole)
        agreement = compare(model, self.names, self.prepared, result, len(self.names))
        first = model.names[0]
        plain = batchwise(bare, self.prepared, self.batch_size)[first]
        cosine = F.cosine_similarity(self._answers(kept)[first].flatten(1), plain.flatten(1))
        if not float(cosine.amin()) >= NEAR:
            raise ExportError(
                f"with preprocessing in it the program gives another {first!r} of "
                f"{self.names[int(cosine.argmin())]} (cosine {float(cosine.amin()):.3f}): expected "
                f"{NEAR} or more; nothing was kept"
            )
        largest, mean = float(self.apart.amax()), float(self.apart.mean())
        return Inside(TAKES, len(self.names), largest, mean, agreement, float(cosine.amin()))

    def _answers(self, run: Runner) -> Outputs:
        """What a program gives for every picture, one after another."""
        rows = [batchwise(run, each.unsqueeze(0), self.batch_size) for each in self.stored]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
