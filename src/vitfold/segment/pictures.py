"""Pictures of classes: truth, dense and folded prediction, and where these two differ."""

import torch
from PIL import Image
from torch import Tensor, nn

from vitfold.folding.fold import clone
from vitfold.segment.metrics import as_segmenter, pixels
from vitfold.segment.scenes import check_size
from vitfold.segment.transforms import WholeScene
from vitfold.tokens.modes import evaluating
from vitfold.tools import draw

MIX = 0.65
"""How much of a class's colour lies over the image."""

RED = torch.tensor([1.0, 0.1, 0.1])


def paint(picture: Image.Image, labels: Tensor, classes: int) -> Image.Image:
    """`labels[H, W]` painted over the picture; pixels without a class stay dark."""
    grey, labelled = _grey(picture), (labels >= 0).unsqueeze(-1)
    mixed = MIX * draw.palette(classes)[labels.clamp(min=0)] + (1 - MIX) * grey
    return draw.to_image(mixed.where(labelled, grey * 0.3).permute(2, 0, 1))


def differences(picture: Image.Image, one: Tensor, other: Tensor) -> Image.Image:
    """The pixels where two predictions differ, in red on grey."""
    grey, differ = _grey(picture), (one != other).unsqueeze(-1)
    return draw.to_image(RED.where(differ, grey * 0.6).permute(2, 0, 1))


def _grey(picture: Image.Image) -> Tensor:
    """`[H, W, 3]`: the picture without colours."""
    return draw.to_pixels(picture).mean(dim=0).unsqueeze(-1).expand(-1, -1, 3)


def compare(
    folded: nn.Module,
    picture: Image.Image,
    transform: WholeScene,
    truth: Tensor | None = None,
    stride: int | None = None,
    dense: nn.Module | None = None,
) -> Image.Image:
    """A photograph, its labels where they are known, what the dense and the folded segmenter say,
    and where these differ.

    folded: the segmenter, or what a runtime makes of it.
    transform: makes an image of it as the model takes it.
    dense: the segmenter without a fold; by default a copy of the folded one.
    """
    dense = clone(folded).eval() if dense is None else dense
    size = (picture.height, picture.width)
    if truth is not None:
        check_size(truth, picture, "the annotation")
    image, _ = transform(picture, torch.zeros(size, dtype=torch.long))
    image = image.to(next(dense.parameters()).device)
    models = {"dense": dense, "folded": folded}
    with torch.inference_mode(), evaluating(folded):
        predicted = {
            name: pixels(model, image, size, stride).cpu() for name, model in models.items()
        }
    classes = as_segmenter(dense).classes
    maps = predicted if truth is None else {"truth": truth, **predicted}
    share = (predicted["dense"] != predicted["folded"]).float().mean()
    overlays = {name: paint(picture, labels, classes) for name, labels in maps.items()}
    overlays[f"they differ: {share:.1%}"] = differences(
        picture, predicted["dense"], predicted["folded"]
    )
    pictures = [draw.plain(each) for each in (picture, *overlays.values())]
    return draw.row(pictures, ["image", *overlays])
