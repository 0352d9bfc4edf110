"""Attention of images that each keep their own number of tokens: every image by itself."""

from typing import Any, ClassVar

from torch import Tensor

from vitfold.folding.blocks import within
from vitfold.folding.blocks.own import OwnAttend
from vitfold.tokens.packed import Packed
from vitfold.tokens.state import additive


class PackedAttend(OwnAttend):
    """Over `[1, H, T, d]`: the tokens of all images, one after another.

    way: how, a name of `within.WAYS`; None: as suits the device.
    """

    way: ClassVar[str | None] = None

    @property
    def books(self) -> Packed:
        """The ledger, whose images have lengths."""
        assert isinstance(self.ledger, Packed)
        return self.ledger

    dense: Tensor | None = None
    """What a block adds to the logits of original tokens."""

    def join(self, bias: Tensor | None, x: Tensor) -> Tensor | None:
        """Nothing: it is added where the images are apart, as the sizes are."""
        self.dense = bias
        return None

    def biased(self, given: str = "attn_mask") -> bool:
        return False

    def _overrides(self, attention: Any, x: Tensor) -> dict[str, Any]:
        return {}

    def positions(self, table: Tensor, still: Tensor) -> Tensor:
        return self.books.rotations(table, still)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.dense is not None:
            own = additive(self.dense, q.dtype)
            bias = own if bias is None else own + bias
        sizes = self.sizes(q) if self.proportional else None
        images = within.Images(q.device, self.books, sizes, bias, scale)
        way = within.WAYS[self.way or ("padded" if q.is_cuda else "one-by-one")]
        if self.wanted and way is within.one_by_one:
            return within.scored(q, k, v, images)
        out = way(q, k, v, images)
        return out, within.seen(q, k, images) if self.wanted else None

    def _capture(self, attention: Any) -> dict[str, Any]:
        """No prefix of its own either: those of all images lie among the others."""
        return super()._capture(attention) | {"num_prefix_tokens": 0}
