"""A prompt without the placeholders of visual tokens that are gone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitfold.errors import ShapeError

FILLS: dict[str, float] = {
    "input_ids": 0,
    "inputs_embeds": 0.0,
    "attention_mask": 0,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "labels": -100,
}
"""What goes along a prompt, and what it says of padding."""


@dataclass(frozen=True)
class Short:
    """Which places of prompts stay.

    rows: `[B, n]` the places that do; where a row is padded, any.
    here: `[B, n]` False for padding.
    """

    rows: Tensor
    here: Tensor

    def take(self, x: Tensor, fill: float) -> Tensor:
        """`[B, n, ...]` of `x[B, L, ...]`."""
        view = self.rows.to(x.device).view(*self.rows.shape, *[1] * (x.dim() - 2))
        some = x.gather(1, view.expand(*self.rows.shape, *x.shape[2:]))
        return some.where(self.here.to(x.device).view(view.shape), some.new_tensor(fill))

    def along(self, x: Tensor, fill: float) -> Tensor:
        """`[..., B, n]` of `x[..., B or 1, L]`."""
        rows, here = self.rows.to(x.device), self.here.to(x.device)
        shape = (*x.shape[:-2], *rows.shape)
        x = x.expand(*x.shape[:-2], len(rows), x.shape[-1])
        return x.gather(-1, rows.expand(shape)).where(here, x.new_tensor(fill))


def shorten(places: Tensor, stays: Sequence[Tensor], mask: Tensor | None) -> Short:
    """The prompts of which visual tokens at `places[B, L]` stay as `stays` says, image by image.
    Rows that lose different numbers are padded anew, on the side on which they were, or else on
    the left.

    mask: `[B, L]` zero for padding.
    """
    flat = torch.cat(list(stays)).to(places.device)
    if int(places.sum()) != len(flat):
        raise ShapeError(
            f"the prompts have {int(places.sum())} placeholders, and their images make "
            f"{len(flat)} visual tokens: give inputs as the processor makes them"
        )
    keep = torch.ones_like(places).masked_scatter(places, flat)
    right = False
    if mask is not None:
        real = mask.to(keep.device).bool()
        right = bool(real[:, 0].all()) and not bool(real.all())
        keep = keep & real
    order = keep.int().sort(dim=1, stable=True, descending=right).indices
    longest = int(keep.sum(dim=1).max())
    rows = order[:, :longest] if right else order[:, order.shape[1] - longest :]
    return Short(rows, keep.gather(1, rows))


def shortened(arguments: Mapping[str, Any], short: Short, padding: int) -> dict[str, Any]:
    """The arguments of a call of a language model, with all that goes along its prompt cut to what
    stays.

    padding: the token that pads.
    """
    new = dict(arguments)
    for name, fill in FILLS.items():
        value = new.get(name)
        if value is not None:
            new[name] = short.take(value, padding if name == "input_ids" else fill)
    if new.get("position_ids") is not None:
        new["position_ids"] = short.along(new["position_ids"], 0)
    if new.get("attention_mask") is None and not bool(short.here.all()):
        new["attention_mask"] = short.here.long()
    return new
