"""Masks, and images with padding."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.compare import check_twin, near
from support.models import CELLS, images, kind, registered, stride
from torch import Tensor

import vitfold
from vitfold.errors import MethodError, UnsupportedModel


@pytest.mark.parametrize(
    "name", ["test_vit", "vit_small_patch16_18x2_224", "vit_base_patch16_xp_224"]
)
@pytest.mark.parametrize("kind_of_mask", ["bias", "keys", "bool"])
def test_masks_go_with_the_tokens(name: str, kind_of_mask: str) -> None:
    model = kind(name)
    x = images(model)
    tokens = model.num_prefix_tokens + CELLS**2
    mask = torch.randn(2, 1, tokens, tokens)
    if kind_of_mask == "keys":
        mask = mask[:, :, :1]
    if kind_of_mask == "bool":
        mask = (mask > -1.0) | torch.eye(tokens, dtype=torch.bool)
    check_twin(model, x, vitfold.ToMe(r=4), attn_mask=mask)


def test_causal_attention_is_refused() -> None:
    model = vitfold.fold(kind("test_vit"), vitfold.ToMe(r=2))
    with pytest.raises(UnsupportedModel, match="is_causal"):
        model(images(model), is_causal=True)


def naflex(pool: str, **options: Any) -> Any:
    options = {"global_pool": pool, "class_token": True, "reg_tokens": 2, "depth": 3} | options
    return kind("naflexvit_base_patch16_gap", **options).double()


def patches(height: int, width: int, seed: int) -> dict[str, Tensor]:
    """One image as NaFlex takes it."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    number = height * width
    return {
        "patches": torch.randn(1, number, 768, generator=generator, dtype=torch.float64),
        "patch_coord": torch.stack([rows, columns], -1).view(1, number, 2),
        "patch_valid": torch.ones(1, number, dtype=torch.bool),
    }


def batched(*alone: dict[str, Tensor]) -> dict[str, Tensor]:
    """Several images, padded to the longest; what lies in the padding is not to matter."""
    longest = max(image["patches"].shape[1] for image in alone)

    def padded(name: str, fill: float) -> Tensor:
        rows = [image[name] for image in alone]
        short = [longest - row.shape[1] for row in rows]
        return torch.cat(
            [
                F.pad(row, [*[0, 0] * (row.dim() - 2), 0, n], value=fill)
                for row, n in zip(rows, short, strict=True)
            ]
        )

    return {
        "patches": padded("patches", 3.0),
        "patch_coord": padded("patch_coord", 0),
        "patch_valid": padded("patch_valid", 0),
    }


IMAGES = [patches(4, 6, 0), patches(3, 5, 1), patches(2, 2, 2)]

NAFLEX = {
    "avg": {"global_pool": "avg"},
    "map": {"global_pool": "map"},
    "token": {"global_pool": "token"},
    "max": {"global_pool": "max"},
    "avgmax": {"global_pool": "avgmax"},
    "with prefix": {"global_pool": "avg", "pool_include_prefix": True},
    "map with prefix": {"global_pool": "map", "pool_include_prefix": True},
    "keys": {"global_pool": "avg", "use_key_only_attn_mask": True},
    "axial": {"global_pool": "avg", "attn_type": "rope", "rope_type": "axial"},
    "mixed": {"global_pool": "avg", "attn_type": "rope", "rope_type": "mixed"},
}


@pytest.mark.parametrize("method", [vitfold.ToMe(r=4), vitfold.Drop(r=3, cue="x_pre")])
@pytest.mark.parametrize("options", NAFLEX.values(), ids=NAFLEX.keys())
def test_padded_images_get_the_result_that_they_get_alone(
    options: dict[str, Any], method: Any
) -> None:
    options = dict(options)
    model = naflex(options.pop("global_pool"), **options)
    dense = model(batched(*IMAGES))
    near([dense], [torch.cat([model(image) for image in IMAGES])], 1e-9)
    vitfold.fold(model, method)
    near([model(batched(*IMAGES))], [torch.cat([model(image) for image in IMAGES])], 1e-9)
    features, truth = (
        model.forward_features(**batched(*IMAGES)),
        model.forward_features(**IMAGES[1]),
    )
    near([features["patches"][1:2, : 3 + 15]], [truth["patches"]], 1e-9)


def test_padding_in_intermediates() -> None:
    model = vitfold.fold(naflex("avg"), vitfold.ToMe(r=4))
    together = model.forward_intermediates(batched(*IMAGES), output_fmt="NLC")[1]
    for place, image in enumerate(IMAGES):
        alone = model.forward_intermediates(image, output_fmt="NLC")[1]
        number = image["patches"].shape[1]
        near([t[place : place + 1, :number] for t in together], alone, 1e-9)


def test_patch_dropout_of_padded_images() -> None:
    model = naflex("avg", patch_drop_rate=0.25, dynamic_img_pad=False).train()
    vitfold.fold(model, vitfold.ToMe(r=3))
    assert model(batched(*IMAGES)).isfinite().all()


@pytest.mark.parametrize("method", [vitfold.ToMe(r=3), vitfold.Drop(r=3), vitfold.LTMP()], ids=str)
def test_an_image_of_padding_alone_is_finite_where_the_dense_one_is(method: Any) -> None:
    model, inputs = naflex("avg"), batched(*IMAGES)
    inputs["patch_valid"][1] = False
    assert model(inputs).isfinite().all()
    vitfold.fold(model, method)
    assert model(inputs).isfinite().all()
    assert model.forward_features(**inputs)["patches"][[0, 2]].isfinite().all()


def test_lgtm_refuses_padded_images() -> None:
    model = vitfold.fold(naflex("avg"), vitfold.LGTM(r=4, skip=0))
    with pytest.raises(MethodError, match="padded"):
        model(batched(*IMAGES))


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "eva02_tiny_patch14_224"])
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("method", [vitfold.ToMe(r=4), vitfold.Drop(r=4)], ids=str)
def test_what_a_mask_hides_is_as_if_it_were_not_there(
    name: str, additive: bool, method: vitfold.Method
) -> None:
    model = registered(name, depth=3, num_classes=5, global_pool="token").double()
    tokens, side = 1 + CELLS**2, CELLS * stride(name)
    mask = torch.ones(tokens, tokens, dtype=torch.bool)
    mask[:, 1 + CELLS * (CELLS - 1) :] = False  # nobody sees the lowest row of patches
    if additive:
        mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, float("-inf"))
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    y = x.clone()
    y[..., -stride(name) :, :] = torch.randn(2, 3, stride(name), side, dtype=torch.float64)
    torch.testing.assert_close(model(x, attn_mask=mask), model(y, attn_mask=mask))
    vitfold.fold(model, method)
    torch.testing.assert_close(model(x, attn_mask=mask), model(y, attn_mask=mask))
    assert (model(x) - model(y)).abs().max() > 1e-3
    with pytest.raises(MethodError, match="LGTM cannot take padded images"):
        vitfold.fold(model, "lgtm", r=2)(x, mask)
