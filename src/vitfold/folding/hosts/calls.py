"""One call of a model whose visual tokens are handed out reduced."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitfold.errors import FoldError, ShapeError, UnsupportedModel
from vitfold.folding.hosts.base import Host
from vitfold.folding.hosts.prompt import Short, shorten, shortened
from vitfold.folding.hosts.registry import host_of

Own = Callable[..., Any]
"""The method of the class, bound to the model."""

Arguments = dict[str, Any]


# How a prompt is cut, an image decides.
@torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
def enter(module: nn.Module, inner: nn.Module, entry: str, *args: Any, **kwargs: Any) -> Any:
    """A method of a model, or of what is around it, whose visual tokens are handed out reduced.

    inner: the model that owns tower and language model.
    """
    own = getattr(type(module), entry).__get__(module)
    host = host_of(inner)
    record = None if host is None else host.record
    if host is None or record is None or record.out != "reduced":
        return own(*args, **kwargs)
    return ENTRIES[entry](host, own, _by_name(own, args, kwargs))


def _by_name(own: Own, args: tuple[Any, ...], kwargs: Arguments) -> Arguments:
    names = [
        name
        for name, parameter in inspect.signature(own).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    return dict(zip(names, args, strict=False)) | kwargs


def _features(host: Host, _: Own, arguments: Arguments) -> Any:
    """`get_image_features`: visual tokens that stay."""
    return _encoded(host, arguments)[0]


def _forward(host: Host, own: Own, arguments: Arguments) -> Any:
    """`forward`, on prompts as the processor makes them."""
    if not _has_images(host, arguments):
        return own(**arguments)
    return own(**_reduced(host, arguments)[0])


def _generate(host: Host, own: Own, arguments: Arguments) -> Any:
    """`generate`, which hands out the prompts that it was given, and what it made of them."""
    if arguments.get("inputs") is not None and arguments.get("input_ids") is None:
        arguments["input_ids"] = arguments.pop("inputs")
    if not _has_images(host, arguments):
        _refuse_old_prompt(host, arguments)
        return own(**arguments)
    prompt = arguments.get("input_ids")
    new, short = _reduced(host, arguments, generating=True)
    if short is None:
        return own(**new)
    length = short.rows.shape[1]
    if prompt is None:
        return own(**new)
    out = own(**_lengths(new, own.__self__, prompt.shape[1] - length))  # type: ignore[attr-defined]
    if isinstance(out, Tensor):
        return _with_prompt(prompt, out, length)
    out.sequences = _with_prompt(prompt, out.sequences, length)
    return out


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _encoded(host: Host, arguments: Arguments) -> tuple[Any, list[Tensor]]:
    """Visual tokens that stay, and which do: a tower in a graph would tell nobody."""
    return host.encode(arguments)


ENTRIES = {"forward": _forward, "generate": _generate, "get_image_features": _features}
"""What lies on a model over its methods."""


def _has_images(host: Host, arguments: Arguments) -> bool:
    """Whether a call brings images; refused where it brings what cannot be taken."""
    for name, remedy in host.refused.items():
        if arguments.get(name) is not None:
            raise UnsupportedModel(
                f"{type(host.model).__name__} takes no {name} with out='reduced': {remedy}"
            )
    if arguments.get(host.images) is None:
        return False
    if arguments.get("input_ids") is None and arguments.get("inputs_embeds") is None:
        return False
    cache = arguments.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise FoldError(
            "images came with a cache that holds tokens already, and out='reduced' cannot tell "
            "which of the prompt those are: give the whole prompt and a new cache"
        )
    return True


def _refuse_old_prompt(host: Host, arguments: Arguments) -> None:
    """Refuse a prompt with placeholders on a cache that holds fewer tokens than it has."""
    cache, ids = arguments.get("past_key_values"), arguments.get("input_ids")
    if cache is None or ids is None or cache.get_seq_length() == 0:
        return
    if bool((ids == host.placeholder).any()):
        raise FoldError(
            "the prompt has placeholders of images that were handed out reduced, so that the cache "
            "is shorter than it: give the images again and a new cache"
        )


def _reduced(
    host: Host, arguments: Arguments, generating: bool = False
) -> tuple[Arguments, Short | None]:
    """The arguments with visual tokens in place of images, and prompts without what is gone; and
    which places of those stay, None where all do."""
    mask = arguments.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        raise ShapeError(
            "out='reduced' takes an attention_mask [B, L] of the prompt: give that, or none"
        )
    outputs, stays = _encoded(host, arguments)
    new = {name: value for name, value in arguments.items() if name != host.images}
    new["mm_encoder_outputs"] = {"image": outputs}
    if all(bool(part.all()) for part in stays):
        return new, None
    positions = None if new.get("position_ids") is not None else host.positions(arguments)
    short = shorten(host.placeholders(arguments), stays, mask)
    new = shortened(new, short, _padding(host))
    if positions is not None:
        new["position_ids"] = _moved(host, positions, short, generating)
    return new, short


def _padding(host: Host) -> int:
    """The token that pads prompts."""
    text = host.config.get_text_config()
    token = getattr(text, "pad_token_id", None)
    return int(token) if isinstance(token, int) and token != host.placeholder else 0


def _moved(host: Host, positions: Tensor, short: Short, generating: bool) -> Tensor:
    """`[3, B, n]`: the positions that stay of `[3, B, L]`; where text is generated, `[4, B, n]`,
    with the place of each token in front."""
    own = short.along(positions, 0)
    host.remember(own, short.here.sum(dim=1))
    if not generating:
        return own
    places = (short.here.long().cumsum(dim=1) - 1).clamp(min=0)
    return torch.cat([places.unsqueeze(0).to(own), own])


def _lengths(arguments: Arguments, model: Any, gone: int) -> Arguments:
    """The arguments of `generate`, in which what limits a whole sequence limits what is left of
    it."""
    config = arguments.get("generation_config") or model.generation_config
    if arguments.get("max_new_tokens", config.max_new_tokens) is not None:
        return arguments
    limits: Mapping[str, Any] = {
        name: arguments.get(name, getattr(config, name)) for name in ("max_length", "min_length")
    }
    shorter = {name: limit - gone for name, limit in limits.items() if limit and limit > gone}
    if shorter and arguments.get("generation_config") is not None:
        config = copy.deepcopy(config)
        config.update(**shorter)
        return arguments | {"generation_config": config}
    return arguments | shorter


def _with_prompt(prompt: Tensor, sequences: Tensor, length: int) -> Tensor:
    """Sequences that begin with the whole prompt, where they began with `length` tokens of it."""
    each = len(sequences) // len(prompt)
    whole = prompt.repeat_interleave(each, dim=0).to(sequences.device)
    return torch.cat([whole, sequences[:, length:]], dim=1)
