"""timm's models: an architecture, the tag of its weights, and arguments of its constructor."""

import difflib
from typing import Any

import timm
from torch import nn

from vitfold.errors import PlanError
from vitfold.folding.families import family_of
from vitfold.saving import fields
from vitfold.saving.fields import Check
from vitfold.saving.sources.source import Source

NAME = r"[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,100})?"


def identify(model: nn.Module) -> str | None:
    """Its name, with the tag that it was created with."""
    config = getattr(model, "pretrained_cfg", None)
    if family_of(type(model)) is None or not isinstance(config, dict):
        return None
    name, tag = config.get("architecture"), config.get("tag")
    if not isinstance(name, str) or not timm.is_model(name):
        return None
    tagged = f"{name}.{tag}"
    return tagged if tag and tagged in tags(name) else name


def tags(name: str) -> list[str]:
    """The names of an architecture with the tags of all its weights."""
    return list(timm.models.get_arch_pretrained_cfgs(name))


def arguments(model: Any) -> dict[str, Any]:
    """What it was created with, and what has been changed on it since then."""
    given = dict(getattr(model, "_model_args", {}))
    now = {key: getattr(model, key, None) for key in ("num_classes", "in_chans", "global_pool")}
    now["img_size"] = getattr(getattr(model, "patch_embed", None), "img_size", None)
    now[OVERLAY] = _overlay(model) or None
    return given | {key: value for key, value in now.items() if value is not None}


def _overlay(model: Any) -> dict[str, Any]:
    """How the model wants its images, where timm would say something else."""
    config, name = getattr(model, "pretrained_cfg", None) or {}, identify(model)
    usual = timm.get_pretrained_cfg(name) if name else None
    if usual is None:
        return {}
    return {
        key: config[key]
        for key in IMAGES
        if config.get(key) is not None and _listed(config[key]) != _listed(getattr(usual, key))
    }


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def check(name: object, given: object) -> None:
    """Refuse what is not a name, and arguments that a plan may not set."""
    fields.text("model.name", name, NAME, "the name of a timm model")
    fields.options("model.arguments", given, ARGUMENTS)


def build(name: str, given: dict[str, Any], pretrained: bool) -> nn.Module:
    """The model as timm creates it."""
    if not known(name):
        raise PlanError(f"{fields.FILE}: model.name={name!r}: timm has no such model{hint(name)}")
    model: nn.Module = timm.create_model(name, pretrained=pretrained, **given)
    return model


def known(name: str) -> bool:
    """Whether timm has a model of that name, with the tag where one is given."""
    architecture, _, tag = name.partition(".")
    return bool(timm.is_model(architecture)) and (not tag or name in tags(architecture))


def hint(name: str) -> str:
    """`" (did you mean 'vit_tiny_patch16_224'?)"`: the known name that is nearest."""
    architecture = name[:100].partition(".")[0]
    names = tags(architecture) if timm.is_model(architecture) else timm.list_models()
    close = difflib.get_close_matches(name[:100], names or [architecture], n=1, cutoff=0.0)
    return f" (did you mean {close[0]!r}?)"


def _whole(least: int, most: int) -> Check:
    return lambda path, value: fields.integer(path, value, least, most)


def _real(least: float, most: float) -> Check:
    return lambda path, value: fields.number(path, value, least, most)


def _word(path: str, value: object) -> str:
    return fields.text(path, value, "[A-Za-z0-9_]{0,32}", "a word")


def _wholes(most: int, count: int) -> Check:
    """One int, or up to `count` in a list."""

    def check(path: str, value: object) -> None:
        numbers = fields.items(path, value, 1, count) if isinstance(value, list) else [value]
        for each in numbers:
            fields.integer(path, each, 1, most)

    return check


def _channels(path: str, value: object) -> None:
    """A number for every channel."""
    for index, number in enumerate(fields.items(path, value, 1, 512)):
        fields.number(f"{path}[{index}]", number, -1e6, 1e6)


def _images(path: str, value: object) -> None:
    fields.options(path, value, IMAGES)


def _each(names: str, check: Check) -> dict[str, Check]:
    return dict.fromkeys(names.split(), check)


OVERLAY = "pretrained_cfg_overlay"
"""timm's option for what a model says of itself."""

IMAGES: dict[str, Check] = {
    **_each("mean std", _channels),
    **_each("crop_pct", _real(0, 1)),
    **_each("crop_mode interpolation", _word),
}
"""What a model says of the images that it takes."""

# Nothing that names a file, an address, a class or a function: those stay with the caller.
ARGUMENTS: dict[str, Check] = {
    OVERLAY: _images,
    **_each("img_size patch_size pos_embed_grid_size", _wholes(2**14, 2)),
    **_each("ref_feat_shape rope_ref_feat_shape", _wholes(2**14, 2)),
    **_each("num_kv_heads", _wholes(512, 512)),
    **_each("rope_mrope_section", _wholes(2**16, 3)),
    **_each("in_chans depth num_heads attn_pool_num_heads", _whole(1, 512)),
    **_each("embed_dim rel_pos_dim", _whole(1, 2**16)),
    **_each("num_classes", _whole(0, 2**20)),
    **_each("reg_tokens num_reg_tokens swiglu_align_to", _whole(0, 1024)),
    **_each("drop_rate pos_drop_rate patch_drop_rate proj_drop_rate", _real(0, 1)),
    **_each("attn_drop_rate drop_path_rate", _real(0, 1)),
    **_each("mlp_ratio attn_pool_mlp_ratio", _real(0, 64)),
    **_each("init_values head_init_scale rope_temperature", _real(0, 1e9)),
    **_each("rope_grid_offset rope_shift_coords rope_jitter_coords", _real(-1e6, 1e6)),
    **_each("rope_rescale_coords", _real(-1e6, 1e6)),
    **_each("global_pool pos_embed weight_init rope_type rope_grid_indexing", _word),
    **_each("rel_pos_type attn_type embed_proj_type pos_embed_interp_mode", _word),
    **_each("norm_layer act_layer embed_norm_layer input_norm_layer", _word),
    **_each("qkv_bias qkv_fused qk_norm proj_bias class_token no_embed_class", fields.switch),
    **_each("pre_norm final_norm fc_norm use_fc_norm pool_include_prefix", fields.switch),
    **_each("scale_attn_norm scale_mlp_norm scale_mlp scale_attn_inner", fields.switch),
    **_each("scale_attn_inner_norm swiglu_mlp attn_only_layer_scale attn_gated", fields.switch),
    **_each("use_abs_pos_emb use_rot_pos_emb use_rel_pos_bias", fields.switch),
    **_each("use_shared_rel_pos_bias shared_rel_pos rope_rotate_half", fields.switch),
    **_each("use_post_norm use_pre_transformer_norm use_post_transformer_norm", fields.switch),
    **_each("dynamic_img_size dynamic_img_pad strict_img_size fix_init", fields.switch),
    **_each("pos_embed_ar_preserving pos_embed_antialias pos_embed_align_corners", fields.switch),
    **_each("pos_embed_use_grid_sample use_key_only_attn_mask", fields.switch),
    **_each("patchify_channels_last enable_patch_interpolator", fields.switch),
}

SOURCE = Source(identify, arguments, check, build)
