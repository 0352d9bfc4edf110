"""Errors of other libraries about wrong images, as errors that say what to do."""

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from torch import Tensor

from vitfold.errors import FoldError, ShapeError, VitfoldError, one_line
from vitfold.folding.families.base import Family
from vitfold.folding.families.registry import REGISTRY
from vitfold.folding.inputs import images_in

Arguments = tuple[Any, ...]
"""The arguments of a call."""

LIBRARIES = frozenset({"vitfold", "torch", "contextlib", "functools", "einops", "torchvision"})
"""Packages whose errors are explained, besides those that the trunks of our families come from."""


@contextlib.contextmanager
def explained(family: Family, arguments: Arguments) -> Iterator[None]:
    """What other libraries say of images that a model does not take, or of blocks that were not
    run, as an error of ours. What code of the user says, as a hook's, comes through as it is."""
    try:
        yield
    except EXPLAINED as error:
        ours = _not_handed_on(error, family)
        if ours is None and _of_libraries(error.__traceback__):
            explanations = (explain(error, family, arguments) for explain in EXPLANATIONS)
            ours = next((e for e in explanations if e is not None), None)
        if ours is None:
            raise
        raise ours from error


def _of_libraries(trace: TracebackType | None) -> bool:
    """Whether nothing but libraries ran where an error comes from."""
    ours = {name for name, family in REGISTRY.items() if family.__module__.startswith("vitfold.")}
    roots = LIBRARIES | {name.partition(".")[0] for name in ours}
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in roots:
            return False
        trace = trace.tb_next
    return True


def _not_handed_on(error: Exception, family: Family) -> VitfoldError | None:
    if not isinstance(error, TypeError) or "'vitfold'" not in str(error):
        return None
    return FoldError(
        f"{type(family.trunk).__name__} does not run the blocks that were folded, or does not hand "
        "keyword arguments down to them: unfold it before its blocks change"
    )


def _in_a_list(error: Exception, _: Family, arguments: Arguments) -> VitfoldError | None:
    images = arguments[0] if arguments else None
    if not isinstance(error, AttributeError) or not isinstance(images, list | tuple):
        return None
    return ShapeError(
        f"images came as a {type(images).__name__}: stack them into one tensor [B, C, H, W]; "
        "images of different sizes go into calls of their own"
    )


def _without_a_batch(error: Exception, family: Family, arguments: Arguments) -> VitfoldError | None:
    image = next((part for part in arguments if isinstance(part, Tensor)), None)
    if isinstance(error, VitfoldError) or not isinstance(error, OF_SHAPES) or image is None:
        return None
    if image.dim() != 3 or image.shape[0] != family.size[0] or _takes_patches(family):
        return None
    return ShapeError(
        f"an image of {list(image.shape)} came without a batch: give images[None], [B, C, H, W]"
    )


def _takes_patches(family: Family) -> bool:
    """Whether images come as rows of patches, which have three axes with their batch."""
    return images_in(family.example()).dim() == 3


def _of_another_size(error: Exception, family: Family, arguments: Arguments) -> VitfoldError | None:
    images = next(
        (part for part in arguments if isinstance(part, Tensor) and part.dim() == 4), None
    )
    if isinstance(error, VitfoldError) or not isinstance(error, OF_SHAPES) or images is None:
        return None
    if isinstance(error, RuntimeError) and images.shape[1:2] == family.size[:1]:
        return None
    shape, expected = ("x".join(map(str, size)) for size in (images.shape[1:], family.size))
    other = tuple(images.shape[1:]) != family.size
    takes = f"takes {expected}: resize them, or create" if other else "does not take them: create"
    return ShapeError(
        f"images of {shape} do not fit {type(family.trunk).__name__}, which {takes} the model for "
        f"them ({one_line(error)})"
    )


OF_SHAPES = (AssertionError, ValueError, RuntimeError)
"""What models say of shapes that they do not take."""

EXPLAINED = (TypeError, AttributeError, *OF_SHAPES)

EXPLANATIONS = (_in_a_list, _without_a_batch, _of_another_size)
"""What may be meant by them, the surest first."""
