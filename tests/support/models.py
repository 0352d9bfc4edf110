"""Registered models at a size that runs in no time, and a slow twin that shows what folding a
model has to give."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from timm.layers import Attention
from torch import Tensor, nn

from vitfold.folding.calls import watch
from vitfold.folding.families import Family, find
from vitfold.tokens.tokenmap import TokenMap

CELLS = 5
"""The side of the patch grid of `registered` models."""


class GatedAttention(Attention):
    """The gate that EVA's blocks may have, in a plain one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"gated": True}))


SMALL = {"embed_dim": 64, "num_heads": 4}

ROTARY = {"attn_type": "rope", "pos_embed": "none", "reg_tokens": 2}

KINDS: dict[str, dict[str, Any]] = {
    "test_vit": {},
    "test_vit2": {},
    "test_vit3": {},  # attention pooling, prefix and all
    "test_vit4": {},
    "test_vit-gated": {"attn_layer": GatedAttention},
    "test_vit-prr": {"global_pool": "prr"},
    "test_vit-max": {"global_pool": "max"},
    "test_vit-avgmax": {"global_pool": "avgmax", "reg_tokens": 2},
    "test_vit-none": {"global_pool": ""},
    "deit_tiny_distilled_patch16_224": SMALL,
    "vit_base_patch16_rpn_224": SMALL,
    "vit_small_patch16_18x2_224": SMALL,
    "vit_base_patch16_xp_224": SMALL,
    "vit_pwee_patch16_reg1_gap_256": SMALL,
    "vit_dpwee_patch16_reg1_gap_256": SMALL,
    "vit_dwee_patch16_reg1_gap_256": SMALL,
    "beit3_base_patch16_224": SMALL,
    "vit_base_patch16_siglip_224": SMALL,
    "vit_so150m_patch16_reg4_map_256": SMALL,
    "vit_base_patch14_reg4_dinov2": SMALL,
    "vit_base_patch16_radio_v3": SMALL,
    "vit_so400m_patch16_radio_v4": SMALL,  # ten prefix tokens
    "aimv2_large_patch14_224": SMALL,
    "vitamin_small_224": {},
    "vit_tiny_r_s16_p8_224": SMALL,
    "beit_base_patch16_224": SMALL,
    "beit_base_patch16_224-shared": SMALL | {"use_shared_rel_pos_bias": True},
    "eva02_tiny_patch14_224": SMALL,
    "eva02_base_patch14_224": SMALL,
    "eva02_base_patch16_clip_224": SMALL,
    "eva02_enormous_patch14_clip_224": SMALL,
    "vit_base_patch16_rope_224": SMALL,
    "vit_base_patch16_rope_mixed_ape_224": SMALL,
    "vit_betwixt_patch16_rope_reg4_gap_256": SMALL,
    "vit_base_patch16_dinov3_qkvb": SMALL,
    "vit_base_patch16_sapiens2": SMALL | {"num_kv_heads": [4, 2]},
    "vit_pe_core_base_patch16_224": SMALL,
    "vit_pe_spatial_tiny_patch16_512": SMALL,
    "test_vit_relpos": {},
    "vit_relpos_base_patch16_cls_224": SMALL,
    "vit_relpos_small_patch16_rpn_224": SMALL,
    "vit_srelpos_small_patch16_224": SMALL,
    "naflexvit_base_patch16_gap": SMALL,
    "naflexvit_base_patch16_map": SMALL,
    "naflexvit_base_patch16_siglip": SMALL,
    "naflexvit_base_patch16_radio_v3": SMALL,
    "naflexvit_base_patch16_gap-axial": SMALL | ROTARY | {"rope_type": "axial"},
    "naflexvit_base_patch16_gap-mixed": SMALL | ROTARY | {"rope_type": "mixed"},
    "naflexvit_base_patch16_gap-dinov3": SMALL | ROTARY | {"rope_type": "dinov3"},
    "naflexvit_base_patch16_gap-mrope": (
        SMALL | ROTARY | {"rope_type": "mrope", "rope_mrope_section": (2, 3, 3)}
    ),
    "naflexvit_base_patch16_gap-gated": SMALL | ROTARY | {"attn_gated": True},
}
"""One model for every class of blocks, way to attend, pooling, number of prefix tokens and kind of
positions that timm has: a registered name, with options where no name has them."""


def kind(name: str, **options: Any) -> Any:
    """A small model of a kind."""
    return registered(name.split("-")[0], **(KINDS[name] | options))


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
    result = re.search(r"patch(\d+)|_s(\d+)_", name)
    if result and "_p8" not in name:
        return int(result[1] or result[2])
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
        for reset in BUFFERS:
            getattr(module, reset, lambda: None)()
    for name, weight in model.named_parameters():
        mean, deviation = _moments(name, weight)
        weight.data.normal_(mean, deviation, generator=generator)
    return model.eval()


BUFFERS = ("init_non_persistent_buffers", "_init_buffers", "reset_running_stats")
"""Methods that fill the buffers of a module that was on the meta device."""


def _moments(name: str, weight: Tensor) -> tuple[float, float]:
    if weight.dim() < 2:
        return (0.0, 0.2) if "bias" in name else (0.9, 0.2)
    return 0.0, 1.5 * weight[0].numel() ** -0.5 if weight.shape[0] > 1 else 0.5


def images(model: Any, batch: int = 2, seed: int = 1) -> Tensor:
    """Random images of the size that the model is made for."""
    generator = torch.Generator().manual_seed(seed)
    weight, size = next(model.parameters()), find(model).size
    if hasattr(model, "embeds"):  # NaFlex takes any size, and its own is large
        size = (3, CELLS * 16, CELLS * 16)
    return torch.randn(batch, *size, generator=generator).to(weight.dtype)


def maps(model: nn.Module, *args: Any, **kwargs: Any) -> list[TokenMap]:
    """What a call of a folded model makes of the original tokens, after every block."""
    with watch() as runs, torch.no_grad():
        model(*args, **kwargs)
    return [state.whole for state in runs[0].states]


@contextlib.contextmanager
def twin(model: nn.Module, stages: list[TokenMap]) -> Iterator[None]:
    """Makes a model that is not folded compute, over all its tokens, what merging them gives.

    In the middle of every block each token becomes the mean of its group. Equal tokens with equal
    positions stay equal, and n of them weigh n times in attention and in pooling: what sizes do.
    """
    result, handles = find(model), []
    for block, before, after in zip(result.blocks, stages, stages[1:], strict=False):
        place, pre = middle(block)
        handles.append(_on(place, pre, _averaging(after)))
        for attention in attentions(block):
            move = _at(before, result)
            handles.append(attention.register_forward_pre_hook(move, with_kwargs=True))
    with _biases(result, stages):
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
    if hasattr(block, "norm4"):  # one norm before and one after each half
        return block.norm3, True
    names = ("norm2", "layernorm_after", "layer_norm2", "rms_norm2", "pre_mlp_layer_norm")
    return next(getattr(block, name) for name in names if hasattr(block, name)), True


def attentions(block: Any) -> list[nn.Module]:
    """The modules of a block that attend."""
    if hasattr(block, "attns"):
        return [branch.attn for branch in block.attns]
    names = ("attn", "attention", "self_attn")
    found = [getattr(block, name) for name in names if hasattr(block, name)] or [block]
    return [getattr(module, "attention", module) for module in found]  # some are in parts


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


def _at(stage: TokenMap, result: Family) -> Callable[..., Any]:
    """Gives every token the position of the one that its group went into."""
    place = stage.keep.gather(1, stage.slot)
    patch = place[:, result.prefix :] - result.prefix

    def move(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for name, table in kwargs.items():
            if name == "rope" and table is not None:
                kwargs[name] = _rows(table, patch)
            elif name == "position_embeddings":
                kwargs[name] = tuple(_rows(part, patch) for part in table)
            elif name == "position_mask":
                kwargs[name] = place
            elif name != "hidden_states" and isinstance(table, Tensor):
                kwargs[name] = _both(table, place)
        own = (_chosen(argument, place, patch) for argument in args[1:])
        return (*args[:1], *own), kwargs

    return move


def _chosen(argument: Any, place: Tensor, patch: Tensor) -> Any:
    """What a block takes by place: a bias `[..., N, N]`, or a table of positions `[B, N, D]`."""
    if not isinstance(argument, Tensor) or argument.dim() < 3:
        return argument
    if argument.dim() == 3 and argument.shape[1] != argument.shape[2]:
        return _rows(argument.unsqueeze(1), patch).squeeze(1)
    return _both(argument, place)


def _rows(table: Tensor, place: Tensor) -> Tensor:
    """`[B, H or 1, N, D]` rows of `table[..., N, D]`, chosen for every image."""
    while table.dim() < 4:
        table = table.unsqueeze(0)
    table = table.expand(len(place), -1, -1, -1)
    return torch.stack([rows[:, index] for rows, index in zip(table, place, strict=True)])


def _both(table: Tensor, place: Tensor) -> Tensor:
    """`[B, H or 1, N, N]`: rows and columns of a bias, chosen for every image."""
    while table.dim() < 4:
        table = table.unsqueeze(0)
    table = table.expand(len(place), -1, -1, -1)
    columns = [t[..., p] for t, p in zip(table, place, strict=True)]
    if table.shape[-2] > 1:
        columns = [t[..., p, :] for t, p in zip(columns, place, strict=True)]
    return torch.stack(columns)


@contextlib.contextmanager
def _biases(result: Family, stages: list[TokenMap]) -> Iterator[None]:
    """Relative position biases that an attention module makes by itself."""
    changed = []
    for block, stage in zip(result.blocks, stages, strict=False):
        place = stage.keep.gather(1, stage.slot)
        for attention in attentions(block):
            for owner, name in (
                (attention, "_get_rel_pos_bias"),
                (attention, "rel_pos"),
                (attention, "relative_position_bias"),
            ):
                part = getattr(owner, name, None)
                if name == "rel_pos" and part is not None:
                    owner, name, part = part, "get_bias", part.get_bias
                if part is None or getattr(attention, "relative_position_bias_table", 1) is None:
                    continue
                owner.__dict__[name] = functools.partial(_moved, part, place)
                changed.append((owner, name))
    try:
        yield
    finally:
        for owner, name in changed:
            del owner.__dict__[name]


def _moved(part: Callable[..., Tensor], place: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _both(part(*args, **kwargs), place)


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

    from support import clips

    if name.startswith(clips.KINDS):
        return clips.video(name, **options)
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
    from support import clips

    if type(model).__name__.startswith(clips.KINDS):
        return clips.inputs(model, batch, seed)
    generator = torch.Generator().manual_seed(seed)
    arguments = dict(find(model).example(batch))
    arguments["pixel_values"] = torch.randn(arguments["pixel_values"].shape, generator=generator)
    if hasattr(model, "text_model"):
        arguments["input_ids"] = torch.tensor([[1, 5, 7, 2]] * batch)
    return arguments
