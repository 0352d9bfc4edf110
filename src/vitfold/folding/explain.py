"""What other libraries say of mistakes, in words of ours."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from vitfold.errors import FoldError, ShapeError, VitfoldError, one_line
from vitfold.folding.families import Found
from vitfold.folding.inputs import images_in

Given = tuple[Any, ...]
"""The arguments of a call."""


@contextlib.contextmanager
def explained(found: Found, given: Given) -> Iterator[None]:
    """What other libraries say of images that a model does not take, or of blocks that were not
    run, as an error of ours."""
    try:
        yield
    except EXPLAINED as error:
        told = (explain(error, found, given) for explain in EXPLANATIONS)
        ours = next((said for said in told if said is not None), None)
        if ours is None:
            raise
        raise ours from error


def _not_handed_on(error: Exception, found: Found, _: Given) -> VitfoldError | None:
    if not isinstance(error, TypeError) or "'vitfold'" not in str(error):
        return None
    return FoldError(
        f"{type(found.trunk).__name__} does not run the blocks that were folded, or does not hand "
        "keyword arguments down to them: unfold it before its blocks change"
    )


def _in_a_list(error: Exception, _: Found, given: Given) -> VitfoldError | None:
    images = given[0] if given else None
    if not isinstance(error, AttributeError) or not isinstance(images, list | tuple):
        return None
    return ShapeError(
        f"images came as a {type(images).__name__}: stack them into one tensor [B, C, H, W]; "
        "images of different sizes go into calls of their own"
    )


def _without_a_batch(error: Exception, found: Found, given: Given) -> VitfoldError | None:
    image = next((part for part in given if isinstance(part, Tensor)), None)
    if isinstance(error, VitfoldError) or not isinstance(error, OF_SHAPES) or image is None:
        return None
    if image.dim() != 3 or image.shape[0] != found.size[0] or _takes_patches(found):
        return None
    return ShapeError(
        f"an image of {list(image.shape)} came without a batch: give images[None], [B, C, H, W]"
    )


def _takes_patches(found: Found) -> bool:
    """Whether images come as rows of patches, which have three axes with their batch."""
    return images_in(found.example()).dim() == 3


def _of_another_size(error: Exception, found: Found, given: Given) -> VitfoldError | None:
    images = next((part for part in given if isinstance(part, Tensor) and part.dim() == 4), None)
    if isinstance(error, VitfoldError) or not isinstance(error, OF_SHAPES) or images is None:
        return None
    if isinstance(error, RuntimeError) and images.shape[1:2] == found.size[:1]:
        return None
    shape, wanted = ("x".join(map(str, size)) for size in (images.shape[1:], found.size))
    other = tuple(images.shape[1:]) != found.size
    takes = f"takes {wanted}: resize them, or create" if other else "does not take them: create"
    return ShapeError(
        f"images of {shape} do not fit {type(found.trunk).__name__}, which {takes} the model for "
        f"them ({one_line(error)})"
    )


OF_SHAPES = (AssertionError, ValueError, RuntimeError)
"""What models say of shapes that they do not take."""

EXPLAINED = (TypeError, AttributeError, *OF_SHAPES)

EXPLANATIONS = (_not_handed_on, _in_a_list, _without_a_batch, _of_another_size)
"""What may be meant by them, the surest first."""
