"""Whether a target gives eager's answers, on images that make ties too."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vitfold.errors import ExportError
from vitfold.exporting.graph import Named, Outputs, examples
from vitfold.exporting.targets import Runner

LIMIT = 1e-3
"""The most by which outputs may differ, as a share of the largest value where that is above one."""

MOST = 64
"""How many of the given images are looked at."""

NUDGES = 4
"""How often an image is changed by rounding, to see whether eager itself holds to its answer."""

NUDGE = 2.0**-20

UNDECIDED = 0.25
"""The most images, as a share, on which eager does not hold to its answer."""


@dataclass(frozen=True)
class Agreement:
    """A target against eager torch.

    images: how many were looked at, those made for ties included.
    largest: the largest difference of an output, where eager holds to its answer.
    where: the image with it.
    undecided: images on which eager's own answer changes as much when pixels change by rounding:
        two tokens are as near to the edge as numbers go.
    top1: the share of images of the same class; None without classes.
    cosine: the mean cosine of the first output.
    """

    images: int
    largest: float
    where: str
    undecided: int
    top1: float | None
    cosine: float


def verify(
    model: Named, run: Runner, images: Tensor | None = None, batch_size: int | None = None
) -> Agreement:
    """Compare a target with the model that it was made of; refused where they differ."""
    given = examples(model.model, 4) if images is None else images[:MOST]
    cases = [(f"image {number}", image) for number, image in enumerate(given)]
    made = list(alike(given[0]))
    stack = torch.stack([image for _, image in cases + made]).cpu()
    names = [name for name, _ in cases + made]
    return compare(model, names, stack, batchwise(run, stack, batch_size), len(cases))


def compare(
    model: Named, names: Sequence[str], stack: Tensor, result: Outputs, loose: int
) -> Agreement:
    """Set what a target gave for images beside what the model gives; refused where they differ.

    names: what the images are called.
    loose: of so many, the first, some may be undecided.
    """
    expected, undecided = eager(model, stack), 0
    worst = _differences(expected, result)
    for number in range(len(names)):
        if float(worst[number]) <= LIMIT:
            continue
        if number >= loose or _holds(model, stack[number]):
            _refuse(names[number], number, expected, result)
        undecided += 1
        worst[number] = 0
    if undecided > UNDECIDED * loose:
        raise ExportError(
            f"{undecided} of {loose} images differ from eager, whose own answer changes as "
            "much by rounding: give images that are photographs, or another method"
        )
    place = int(worst.argmax())
    first = model.names[0]
    return Agreement(
        images=len(names),
        largest=float(worst[place]),
        where=names[place],
        undecided=undecided,
        top1=_same_class(expected, result),
        cosine=_cosine(expected[first], result[first]),
    )


def alike(like: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Images `[C, H, W]` in which many tokens are alike: constant, tiled, and in a black frame."""
    height, width = like.shape[1:]
    constant = torch.full_like(like, 0.3)
    tiled = like.repeat(1, 3, 3)[:, ::3, ::3][:, :height, :width]
    framed = torch.full_like(like, -2.0)
    y, x = height // 4, width // 4
    framed[:, y : height - y, x : width - x] = like[:, y : height - y, x : width - x]
    yield "a constant image", constant
    yield "a tiled image", tiled
    yield "a black frame", framed


def eager(model: Named, images: Tensor) -> Outputs:
    """What the model gives, one image after another."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        rows = [model(image.to(device)) for image in images.split(1)]
    return {name: torch.cat([row[name].cpu() for row in rows]) for name in model.names}


def batchwise(run: Runner, images: Tensor, batch_size: int | None) -> Outputs:
    """What a target gives, in batches of its size, of which the last is filled up; where it takes
    any number, of three and less."""
    rows: list[Outputs] = []
    for batch in images.split(batch_size or 3):
        missing = (batch_size or len(batch)) - len(batch)
        full = torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]).contiguous()
        with torch.no_grad():
            outputs = run(full)
        rows.append({name: output[: len(batch)] for name, output in outputs.items()})
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _differences(expected: Outputs, result: Outputs) -> Tensor:
    """`[B]`: the largest difference in every image."""
    return torch.stack([_apart(expected[name], result[name]) for name in expected]).amax(dim=0)


def _apart(expected: Tensor, result: Tensor) -> Tensor:
    if expected.shape != result.shape:
        raise ExportError(
            f"an output has shape {list(result.shape)}: eager torch gives {list(expected.shape)}"
        )
    a, b = (x.double().flatten(1) for x in (expected, result))
    apart = (a - b).abs().amax(dim=1) / a.abs().amax(dim=1).clamp(min=1)
    return apart.nan_to_num(nan=float("inf"))


def _holds(model: Named, image: Tensor) -> bool:
    """Whether eager gives nearly the same of an image that is changed by rounding."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(NUDGES, *image.shape, generator=generator)
    changed = torch.cat([image.unsqueeze(0), image * (1 + NUDGE * noise)])
    outputs = eager(model, changed)
    first = {name: output[:1].expand_as(output) for name, output in outputs.items()}
    return float(_differences(first, outputs).amax()) <= LIMIT


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.flatten(1).double(), b.flatten(1).double()).mean())


def _refuse(what: str, number: int, expected: Outputs, result: Outputs) -> None:
    for name in expected:
        apart = float(_apart(expected[name], result[name])[number])
        if apart > LIMIT:
            raise ExportError(
                f"what was written differs from eager by {apart:.1e} in {name!r} of {what}: "
                f"expected at most {LIMIT:.0e}; nothing was kept"
            )


def _same_class(expected: Outputs, result: Outputs) -> float | None:
    if "logits" not in expected or expected["logits"].dim() != 2:
        return None
    best = [outputs["logits"].argmax(dim=1) for outputs in (expected, result)]
    return float((best[0] == best[1]).double().mean())
