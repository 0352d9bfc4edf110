"""Registered models at a size that runs in no time, and a slow twin that shows what folding a
model has to give."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vitfold.families import Found, find
from vitfold.fold import watch
from vitfold.tokenmap import TokenMap

CELLS = 5
"""The side of the patch grid of `registered` models."""


def registered(name: str, depth: int = 2, **options: Any) -> Any:
    """A model of timm's registry with few blocks, few patches and weights that matter."""
    if not name.startswith("naflexvit"):
        options.setdefault("img_size", CELLS * stride(name))
    if "sapiens2" in name:
        options.setdefault("num_kv_heads", _key_heads(name, depth))
    with torch.device("meta"):
        model = timm.create_model(name, depth=depth, **options)
    return scatter(model.to_empty(device="cpu"))


def stride(name: str) -> int:
    """How many pixels a patch of a registered model is wide."""
    found = re.search(r"patch(\d+)|_s(\d+)_", name)
    if found and "_p8" not in name:
        return int(found[1] or found[2])
    return 32 if "resnet" in name or "_p8" in name else 16


def _key_heads(name: str, depth: int) -> list[int]:
    """The first block of these has all its key heads, those in the middle fewer."""
    with torch.device("meta"):
        blocks = timm.create_model(name).blocks
    heads = [block.attn.num_kv_heads for block in blocks]
    return [heads[0]] + [heads[len(heads) // 2]] * (depth - 1)


def scatter(model: nn.Module, seed: int = 0) -> Any:
    """Random weights of a size that lets every part of the model matter; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for reset in ("_init_buffers", "reset_running_stats"):
            if hasattr(module, reset):
                getattr(module, reset)()
    for name, weight in model.named_parameters():
        mean, deviation = _moments(name, weight)
        weight.data.normal_(mean, deviation, generator=generator)
    return model.eval()


def _moments(name: str, weight: Tensor) -> tuple[float, float]:
    if weight.dim() < 2:
        return (0.0, 0.2) if "bias" in name else (0.9, 0.2)
    return 0.0, 1.5 * weight[0].numel() ** -0.5 if weight.shape[0] > 1 else 0.5


def images(model: Any, batch: int = 2, seed: int = 1) -> Tensor:
    """Random images of the size that the model is made for."""
    generator = torch.Generator().manual_seed(seed)
    weight = next(model.parameters())
    return torch.randn(batch, *find(model).size, generator=generator).to(weight.dtype)


def maps(model: nn.Module, *args: Any, **kwargs: Any) -> list[TokenMap]:
    """What a call of a folded model makes of the original tokens, after every block."""
    with watch() as runs, torch.no_grad():
        model(*args, **kwargs)
    like = torch.empty(len(runs[0].last.maps[0].keep)) if runs[0].last.maps else torch.empty(1)
    return [books.whole(like) for books in runs[0].books]


@contextlib.contextmanager
def twin(model: nn.Module, stages: list[TokenMap]) -> Iterator[None]:
    """Makes a model that is not folded compute, over all its tokens, what merging them gives.

    In the middle of every block each token becomes the mean of its group. Equal tokens with equal
    positions stay equal, and n of them weigh n times in attention and in pooling: what sizes do.
    """
    found, handles = find(model), []
    for block, before, after in zip(found.blocks, stages, stages[1:], strict=False):
        place, pre = middle(block)
        handles.append(_on(place, pre, _averaging(after)))
        for attention in attentions(block):
            handles.append(attention.register_forward_pre_hook(_at(before, found), with_kwargs=True))
    with _biases(found, stages):
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def middle(block: Any) -> tuple[nn.Module, bool]:
    """The module before which (or, if False, after which) the tokens of a block are reduced."""
    kind = type(block).__name__
    if "ParallelScaling" in kind:
        return block, False
    if kind == "ParallelThingsBlock":
        return block.ffns[0].norm, True
    if "Post" in kind:
        return block.mlp, True
    names = ("norm2", "layernorm_after", "layer_norm2")
    return next(getattr(block, name) for name in names if hasattr(block, name)), True


def attentions(block: Any) -> list[nn.Module]:
    """The modules of a block that attend."""
    if hasattr(block, "attns"):
        return [branch.attn for branch in block.attns]
    names = ("attn", "attention", "self_attn")
    return [getattr(block, name) for name in names if hasattr(block, name)] or [block]


def _on(module: nn.Module, pre: bool, act: Callable[[Tensor], None]) -> Any:
    if pre:
        return module.register_forward_pre_hook(lambda _, args: act(args[0]))
    return module.register_forward_hook(lambda _, args, out: act(out))


def _averaging(stage: TokenMap) -> Callable[[Tensor], None]:
    """Replaces, in place, every token by the mean of its group."""

    def average(x: Tensor) -> None:
        groups = nn.functional.one_hot(stage.slot, stage.slots).to(x.dtype)
        mean = (groups.mT @ x) / groups.sum(1).unsqueeze(-1)
        x.data.copy_(groups @ mean)

    return average


def _at(stage: TokenMap, found: Found) -> Callable[..., Any]:
    """Gives every token the position of the one that its group went into."""
    place = stage.keep.gather(1, stage.slot)
    patch = place[:, found.prefix :] - found.prefix

    def move(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for name, table in kwargs.items():
            if name == "rope" and table is not None:
                kwargs[name] = _rows(table, patch)
            elif name == "position_embeddings":
                kwargs[name] = tuple(_rows(part, patch) for part in table)
            elif isinstance(table, Tensor) and table.dim() == 4:
                kwargs[name] = _both(table, place)
        return args, kwargs

    return move


def _rows(table: Tensor, place: Tensor) -> Tensor:
    """`[B, H or 1, N, D]` rows of `table[..., N, D]`, chosen for every image."""
    while table.dim() < 4:
        table = table.unsqueeze(0)
    table = table.expand(len(place), -1, -1, -1)
    return torch.stack([rows[:, index] for rows, index in zip(table, place, strict=True)])


def _both(table: Tensor, place: Tensor) -> Tensor:
    """`[B, H or 1, N, N]`: rows and columns of a bias, chosen for every image."""
    table = table.expand(len(place), -1, -1, -1)
    chosen = [t[..., p][..., p, :] if t.shape[-2] > 1 else t[..., p] for t, p in zip(table, place)]
    return torch.stack(chosen)


@contextlib.contextmanager
def _biases(found: Found, stages: list[TokenMap]) -> Iterator[None]:
    """Relative position biases that an attention module makes by itself."""
    changed = []
    for block, stage in zip(found.blocks, stages, strict=False):
        place = stage.keep.gather(1, stage.slot)
        for attention in attentions(block):
            for owner, name in ((attention, "_get_rel_pos_bias"), (attention, "rel_pos")):
                part = getattr(owner, name, None)
                if name == "rel_pos" and part is not None:
                    owner, name, part = part, "get_bias", part.get_bias
                if part is None or getattr(attention, "relative_position_bias_table", 1) is None:
                    continue
                owner.__dict__[name] = lambda part=part, place=place: _both(part(), place)
                changed.append((owner, name))
    try:
        yield
    finally:
        for owner, name in changed:
            del owner.__dict__[name]


TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "patch_size": 4,
    "image_size": 20,
}
"""Of Hugging Face's vision configurations: five by five patches."""


def hf(name: str, **options: Any) -> Any:
    """A small model of a class of transformers, with weights that matter."""
    import transformers

    cls = getattr(transformers, name)
    return scatter(cls(_config(cls.config_class, options)))


def _config(cls: Any, options: dict[str, Any]) -> Any:
    size = dict(TINY)
    if cls.__name__.startswith("Siglip2"):
        del size["image_size"]
        size["num_patches"] = CELLS**2
    if "Beit" in cls.__name__:
        size |= {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]}
        size |= {"use_relative_position_bias": True, "layer_scale_init_value": 1.0}
    text = {k: v for k, v in TINY.items() if k not in ("patch_size", "image_size")}
    text |= {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if "vision_config" in getattr(cls, "sub_configs", {}):
        vision = {"vision_config": size | options, "text_config": text}
        return cls(**vision, projection_dim=8) if "CLIP" in cls.__name__ else cls(**vision)
    return cls(**(size | options))


def inputs(model: Any, batch: int = 2, seed: int = 1) -> dict[str, Tensor]:
    """What a model of transformers is called with: random images, and text where it reads that."""
    generator = torch.Generator().manual_seed(seed)
    given = dict(find(model).example(batch))
    given["pixel_values"] = torch.randn(given["pixel_values"].shape, generator=generator)
    if hasattr(model, "text_model"):
        given["input_ids"] = torch.tensor([[1, 5, 7, 2]] * batch)
    return given
