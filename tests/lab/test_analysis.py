"""Looking into models: similarity, merged pairs, sharpness, positions."""

import pytest
import timm
import torch
import torch.nn.functional as F
from support.labelled import labelled
from support.models import registered
from torch import Tensor

import vitfold
from vitfold.errors import DataError, MethodError, UnsupportedModel
from vitfold.lab.analysis.merged import merged_similarity
from vitfold.lab.analysis.positions import position_similarity
from vitfold.lab.analysis.sharpness import sharpness
from vitfold.lab.analysis.similarity import mean_cosine, token_similarity


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    x = torch.randn(2, 5, 7)
    for image, result in zip(x, mean_cosine(x), strict=True):
        pairs = [F.cosine_similarity(image[i], image[j], dim=0)
                 for i in range(5) for j in range(5) if i != j]  # fmt: skip
        assert float(result) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_similarities_are_those_of_the_dense_blocks(name: str) -> None:
    model = registered(name).eval()
    batches = labelled(model)
    result = token_similarity(model, batches)
    caught: list[list[Tensor]] = [[] for _ in model.blocks]
    for store, block in zip(caught, model.blocks, strict=True):
        block.register_forward_pre_hook(lambda _, inputs, store=store: store.append(inputs[0]))
    with torch.no_grad():
        for pixels, _ in batches:
            model(pixels)
    for store, value in zip(caught, result.before, strict=True):
        assert value == pytest.approx(float(mean_cosine(torch.cat(store)).mean()), abs=1e-6)
    assert result.inside != result.after


def test_merged_pairs_grow_less_alike_as_more_merge() -> None:
    model = registered("vit_tiny_patch16_224", depth=3).eval()
    result = merged_similarity(model, labelled(model), [1, 4, 6], "dfe", {"skip": 1})
    for means in result.values():
        assert means[0] is None
    firsts = [result[r][1] for r in (1, 4, 6)]
    assert firsts == sorted(firsts, reverse=True)
    assert "_vitfold" not in vars(model)


def test_sharpness_is_the_largest_eigenvalue() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=16, embed_dim=6, num_heads=2, depth=2,
        mlp_ratio=1, num_classes=2,
    ).double()  # fmt: skip
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith("blocks.0.attn"))
    pixels, labels = torch.randn(4, 3, 32, 32).double(), torch.tensor([0, 1, 0, 1])
    weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([w.numel() for w in weights.values()])
        inputs = {n: part.view_as(w) for (n, w), part in zip(weights.items(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, inputs, pixels), labels)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        flat = torch.cat([w.flatten() for w in weights.values()])
        hessian = torch.autograd.functional.hessian(loss, flat)
    expected = float(torch.linalg.eigvalsh(hessian)[-1])
    with pytest.raises(DataError, match="tolerance=nan"):
        sharpness(model, [(pixels, labels)], float("nan"))
    assert sharpness(model.eval(), [(pixels, labels)], 1e-4) == pytest.approx(expected, rel=1e-2)
    vitfold.fold(model, "tome", r=1)
    assert sharpness(model, [(pixels, labels)], 1e-2) != pytest.approx(expected, rel=1e-6)


def test_positions_are_compared_where_there_are_any() -> None:
    result = position_similarity(vitfold.create_model("digits"))
    assert result.shape == (14, 14, 14, 14)
    torch.testing.assert_close(result[3, 4, 3, 4], torch.tensor(1.0))
    with pytest.raises(UnsupportedModel, match="its positions lie in attention"):
        position_similarity(registered("vit_base_patch16_rope_mixed_224"))


@pytest.mark.parametrize("method", ["evit", "mergedrop", "drop", "ward"])
def test_pairs_of_other_methods(method: str) -> None:
    model = registered("vit_tiny_patch16_224", depth=3).eval()
    options = {"blocks": (1,)} if method == "evit" else {}
    [result] = merged_similarity(model, labelled(model), [2], method, options).values()
    merges = method != "drop"
    assert any(value is not None for value in result) == merges
    with pytest.raises(MethodError, match="give a method that merges"):
        merged_similarity(model, labelled(model), [2], "dynamicvit")
