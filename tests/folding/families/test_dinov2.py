"""DINOv2 as its own repository builds it, its blocks in chunks and without."""

from typing import Any

import pytest
import torch
from support.compare import near, same
from support.models import maps, scatter
from support.outside import check, check_dropped
from torch import Tensor, nn

import vitfold
from vitfold.errors import MethodError, ShapeError, UnsupportedModel
from vitfold.folding.families import find

vision = pytest.importorskip("dinov2.models.vision_transformer")

from dinov2.layers.attention import Attention  # noqa: E402
from dinov2.layers.block import Block  # noqa: E402

CHUNKS = [0, 1, 2, 4]

chunked = pytest.mark.parametrize("chunks", CHUNKS)


def dino(chunks: int = 2, **options: Any) -> Any:
    settings = {"img_size": 20, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 4}
    settings |= {"block_chunks": chunks, "init_values": 0.5}
    return scatter(vision.DinoVisionTransformer(**(settings | options)))


def images(batch: int = 2, side: int = 20) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


@chunked
@pytest.mark.parametrize("method", [vitfold.ToMe(r=[5, 4]), vitfold.LGTM(r=4, skip=0)], ids=str)
def test_merging_is_what_the_twin_computes(chunks: int, method: Any) -> None:
    check(dino(chunks), images(), method)


@pytest.mark.parametrize("cue", ["q", "v", "x_attn", "x_pre"])
def test_every_cue_merges(cue: str) -> None:
    check(dino(), images(), vitfold.ToMe(r=4, cue=cue))


@pytest.mark.parametrize("block", [Block, vision.Block])
def test_both_kinds_of_blocks_and_of_attention(block: Any) -> None:
    def create(**options: Any) -> nn.Module:
        return block(**options, attn_class=Attention)  # type: ignore[no-any-return]

    check(dino(block_fn=create), images(), vitfold.ToMe(r=4))


def test_other_sizes_interpolate_positions() -> None:
    model = dino()
    check(model, images(side=28), vitfold.ToMe(r=4))
    check(model, images(side=28), vitfold.LGTM(r=4, skip=0))


@chunked
def test_features_and_intermediates_stay_dense(chunks: int) -> None:
    model, x = dino(chunks), images()
    calls = [
        lambda: model.forward_features(x),
        lambda: model(x, is_training=True),
        lambda: model.get_intermediate_layers(x, n=2, reshape=True, return_class_token=True),
        lambda: model.get_intermediate_layers(x, n=[0, 3]),
    ]
    dense = [flat(call()) for call in calls]
    vitfold.fold(model, vitfold.ToMe(r=0))
    for call, before in zip(calls, dense, strict=True):
        same(flat(call()), before)
    for method in (vitfold.ToMe(r=4), vitfold.Drop(r=4)):
        vitfold.fold(model, method)
        for call, before in zip(calls, dense, strict=True):
            assert [t.shape for t in flat(call())] == [t.shape for t in before]
            assert all(t.isfinite().all() for t in flat(call()))
    check_dropped(model, x)


def flat(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    if out is None:
        return []
    return [t for part in (out.values() if isinstance(out, dict) else out) for t in flat(part)]


def test_dropped_positions_show_the_mean_of_normalized_survivors() -> None:
    model, x = vitfold.fold(dino(), vitfold.Drop(r=4)), images()
    patches = model.forward_features(x)["x_norm_patchtokens"]
    keep = maps(model, x)[-1].keep
    gone = torch.ones(2, 26, dtype=torch.bool).scatter(1, keep, False)[:, 1:]
    for image, lost in zip(patches, gone, strict=True):
        mean = image[~lost].mean(dim=0)
        near([image[lost]], [mean.expand(int(lost.sum()), -1)], 1e-4)


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_training_leaves_out_the_same(rate: float) -> None:
    model, x = dino(drop_path_rate=rate, drop_path_uniform=True).train(), images(8)
    torch.manual_seed(0)
    dense = model(x)
    vitfold.fold(model, vitfold.ToMe(r=0))
    torch.manual_seed(0)
    near([model(x)], [dense])
    folded = vitfold.fold(model, vitfold.ToMe(r=4))(x)
    assert folded.isfinite().all()
    folded.sum().backward()


def test_images_that_keep_their_own_numbers_get_alone_what_they_get_together() -> None:
    model, x = vitfold.fold(dino().double(), vitfold.LTMP(merge_threshold=0.3)), images(3).double()
    with torch.no_grad():
        near([model(x)], [torch.cat([model(image) for image in x.split(1)])], 1e-10)


def test_hooks_on_blocks_and_chunks_see_dense_tokens() -> None:
    model, visits = vitfold.fold(dino(), vitfold.ToMe(r=4)), list[int]()
    model.blocks[0].register_forward_hook(lambda _, args, out: visits.append(out.shape[1]))
    find(model).blocks[3].register_forward_hook(lambda _, args, out: visits.append(out.shape[1]))
    model(images())
    assert visits[-1] == 26


def test_lists_of_images_are_refused() -> None:
    model = vitfold.fold(dino(), vitfold.ToMe(r=4))
    with pytest.raises(ShapeError, match="once for every size"):
        model.forward_features([images(), images(side=28)], [None, None])


def test_layers_of_another_kind_are_refused() -> None:
    class Rotary(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1.0  # type: ignore[no-any-return]

    def create(**options: Any) -> nn.Module:
        return vision.Block(**options, attn_class=Rotary)  # type: ignore[no-any-return]

    with pytest.raises(UnsupportedModel, match="attend in an unknown way"):
        vitfold.fold(dino(block_fn=create), "tome", r=2)


def test_what_reads_its_patches_is_told_from_itself() -> None:
    model = dino()
    vitfold.fold(model, vitfold.AViT())
    with pytest.raises(MethodError, match="reads out its patches"):
        vitfold.fold(nn.Sequential(vitfold.unfold(model), nn.Linear(32, 2)), vitfold.AViT())


def test_it_compiles_in_one_graph() -> None:
    model, x = vitfold.fold(dino(), vitfold.ToMe(r=4)), images()
    with torch.no_grad():
        near([torch.compile(model, backend="eager", fullgraph=True)(x)], [model(x)])
