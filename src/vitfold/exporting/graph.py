"""The program of a model: images in, its outputs by name, for any number of images."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitfold.errors import DataError, UnsupportedModel, VitfoldError, one_line
from vitfold.folding.families import find
from vitfold.folding.inputs import lacks_text
from vitfold.tools.looks import look

INPUT = "pixel_values"
"""What every exported model calls its images."""

Outputs = dict[str, Tensor]


class Named(nn.Module):
    """A model whose outputs have names, and whose input is called `pixel_values`."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, pixel_values: Tensor) -> Outputs:
        """The outputs for `[B, C, H, W]`."""
        return dict(zip(self.names, _tensors(self.model(pixel_values)).values(), strict=True))


@dataclass(frozen=True, eq=False)
class Graph:
    """A program, and what it was made of.

    names: of its outputs.
    example: `[B, C, H, W]` images that it takes.
    """

    program: torch.export.ExportedProgram
    names: tuple[str, ...]
    example: Tensor


def graph_of(model: nn.Module, batch_size: int | None = None) -> Graph:
    """The program of a model in evaluation."""
    example = examples(model, batch_size or 2)
    named = Named(model, output_names(model, example[:1]))
    dynamic = None if batch_size else ({0: torch.export.Dim("batch")},)
    with torch.no_grad(), quiet():
        try:
            program = torch.export.export(named, (example,), dynamic_shapes=dynamic)
        except Exception as error:  # torch.export raises what it met, often with a page around it
            raise _refusal(model, error) from error
    return Graph(program, named.names, example)


def examples(model: nn.Module, count: int) -> Tensor:
    """Random images that a model takes."""
    family = find(model)
    size = getattr(model, "window", None)  # of what takes other images than its trunk
    shape = family.size if size is None else (family.size[0], *size)
    weight = next(model.parameters())
    if weight.dtype != torch.float32:
        kind = str(weight.dtype).removeprefix("torch.")
        raise UnsupportedModel(f"a model in {kind} is not exported: give model.float()")
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *shape, generator=generator).to(weight.device)


def output_names(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    """What the outputs of a model are called: by transformers, or by what they are."""
    with torch.no_grad():
        if lacks_text(model, images):
            raise UnsupportedModel(
                f"{type(model).__name__} reads text too: export the part that reads images, such "
                "as its vision_model"
            )
        try:
            output = model(images)
        except (TypeError, KeyError, AttributeError) as error:
            raise UnsupportedModel(
                f"{type(model).__name__} takes more than images, and cannot be exported: "
                f"{one_line(error)}"
            ) from error
        if not isinstance(output, Tensor):
            return tuple(_tensors(output))
        seen = look(model, images)
    if seen.logits is not None:
        return ("logits",)
    return ("embedding" if output.dim() == 2 else "features",)


def _tensors(output: Any) -> Outputs:
    """The tensors that a model gives, by name."""
    if isinstance(output, Tensor):
        return {"output": output}
    if isinstance(output, Mapping):
        return {name: value for name, value in output.items() if isinstance(value, Tensor)}
    if isinstance(output, Sequence) and all(isinstance(value, Tensor) for value in output):
        return {f"features_{level}": value for level, value in enumerate(output)}
    raise DataError(f"a {type(output).__name__} cannot be exported: expected tensors")


def _refusal(model: nn.Module, error: Exception) -> VitfoldError:
    """The error in one line; ours is somewhere among those that torch put around it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, VitfoldError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return UnsupportedModel(
        f"torch.export makes no program of this {type(model).__name__}: {one_line(error)}"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it exporters do not tell how they go about it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
