"""The segmenter: a timm encoder, folded or not, whose forward stays its own, and a decoder."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.errors import MethodError, ShapeError, UnsupportedModel, nearest
from vitfold.folding.families import find
from vitfold.segment.decoders import DECODERS

MOST_CLASSES = 2**16

ENCODER = "encoder"


class Segmenter(nn.Module):
    """An encoder and a decoder: the logits of every pixel of a window.

    encoder: a timm vision transformer that can be folded. `vitfold.fold` on the whole folds it.
    classes: how many there are.
    decoder: `linear` or `mask`.
    window: height and width of the images that it takes; `slide` takes larger and smaller ones.
    """

    reads_patches = True

    def __init__(self, encoder: nn.Module, classes: int, decoder: str = "mask") -> None:
        super().__init__()
        if not isinstance(decoder, str) or decoder not in DECODERS:
            raise MethodError(f"unknown decoder {decoder!r}{nearest(str(decoder), DECODERS)}")
        if not isinstance(classes, int) or not 2 <= classes <= MOST_CLASSES:
            raise MethodError(f"classes={classes!r}: expected 2 to {MOST_CLASSES}")
        family = find(encoder)
        if family.trunk is not encoder or not hasattr(encoder, "forward_features"):
            raise UnsupportedModel(
                f"{type(encoder).__name__} is no encoder: give a timm vision transformer"
            )
        self.encoder: Any = encoder
        self.classes = classes
        self.kind = decoder
        grid = family.layout().grid
        assert grid is not None  # a trunk's own example has one
        self.prefix, self.grid, self.window = family.prefix, grid, family.size[1:]
        self.decoder = DECODERS[decoder](encoder.num_features, classes)

    def no_weight_decay(self) -> set[str]:
        """The parameters that timm's optimizers do not decay: those of the encoder."""
        return {f"{ENCODER}.{name}" for name in self.encoder.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's layer groups of the encoder, with the decoder as the last."""
        matcher = self.encoder.group_matcher(coarse)
        return {layer: _inside(names) for layer, names in matcher.items()}

    def forward(self, x: Tensor) -> Tensor:
        """`[B, classes, H, W]`: the logits of every pixel of `[B, C, H, W]`."""
        if tuple(x.shape[-2:]) != self.window:
            size, window = ("x".join(map(str, size)) for size in (x.shape[-2:], self.window))
            raise ShapeError(
                f"images of {size} do not fit a window of {window}: use vitfold.segment.slide"
            )
        tokens = self.encoder.forward_features(x)
        if isinstance(tokens, dict):  # NaFlex says with them which are padding
            tokens = tokens["patches"]
        logits = self.decoder(tokens[:, self.prefix :])
        maps = logits.transpose(1, 2).unflatten(2, self.grid)
        return F.interpolate(maps, size=x.shape[-2:], mode="bilinear", align_corners=False)


def _inside(names: Any) -> Any:
    """Patterns of names, for the same in the encoder."""
    if isinstance(names, str):
        return rf"{ENCODER}\.(?:{names.removeprefix('^')})"
    return None if names is None else [(_inside(pattern), end) for pattern, end in names]
