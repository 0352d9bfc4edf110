"""RunLength: what does not change in a clip becomes one token that counts as often as it lasts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.clips import inputs, video
from support.compare import near, same, tensors
from support.models import maps, registered
from torch import Tensor

import vitfold
from vitfold import RunLength
from vitfold.errors import FoldError, MethodError
from vitfold.folding.families import find
from vitfold.methods.registry import from_json
from vitfold.methods.runlength import run_starts

pytest.importorskip("transformers").logging.set_verbosity_error()

JOINT = ("VideoMAEModel", "VJEPA2Model", "VivitModel")

every_model = pytest.mark.parametrize("name", JOINT)


def clips(model: Any) -> tuple[str, Tensor]:
    """Three clips of six frames, two to a token: one in which nothing moves, one in which half the
    picture moves once, one of noise."""
    [(key, noise)] = inputs(model, batch=3).items()
    noise[0] = noise[0, :1]
    noise[1, 2:] = noise[1, :1]
    noise[1, :2] = noise[1, :1]
    noise[1, 4:, :, :8] += 1.0
    return key, noise


@torch.no_grad()
def shown(model: Any, key: str, pixels: Tensor) -> Tensor:
    return model(**{key: pixels})[0]  # type: ignore[no-any-return]


@every_model
def test_a_static_clip_leaves_the_tokens_of_one_frame(name: str) -> None:
    model = vitfold.fold(video(name), RunLength())
    key, pixels = clips(model)
    prefix = find(model).prefix
    trace = vitfold.trace(model, {key: pixels})
    assert trace.counts == [[prefix + 16, prefix + 24, prefix + 48]] * 3
    groups = trace.groups(0)
    assert all(torch.equal(frame, groups[0]) for frame in groups)
    moved = trace.groups(1)
    assert torch.equal(moved[0], moved[1])
    assert torch.equal(moved[2, 2:], moved[0, 2:])
    assert not (moved[2, :2] == moved[0, :2]).any()


@every_model
def test_a_clip_in_which_nothing_repeats_is_computed_as_without(name: str) -> None:
    model = video(name)
    arguments = inputs(model)
    with torch.no_grad():
        dense = tensors(model(**arguments))
        same(tensors(vitfold.fold(model, RunLength())(**arguments)), dense)
        vitfold.fold(model, RunLength(threshold=100.0))
        assert not torch.allclose(model(**arguments)[0], dense[0], rtol=1e-3, atol=1e-4)


@every_model
def test_the_rest_of_the_batch_does_not_matter(name: str) -> None:
    model = vitfold.fold(video(name).double(), RunLength())
    key, pixels = clips(model)
    together = shown(model, key, pixels)
    alone = torch.cat([shown(model, key, clip) for clip in pixels.split(1)])
    near([together, shown(model, key, pixels.flip(0)).flip(0)], [alone, alone], 1e-10)


@every_model
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_run_counts_as_often_as_it_is_long(name: str, attention: str) -> None:
    """Over all tokens, each with the features and the position of the head of its run."""
    model = video(name).double()
    model.set_attn_implementation(attention)
    key, pixels = clips(model)
    dense = shown(model, key, pixels)
    folded = shown(vitfold.fold(model, RunLength()), key, pixels)
    stage = maps(model, **{key: pixels})[0]
    slot = maps(model, **{key: pixels})[-1].slot
    heads = torch.stack([_heads(row) for row in slot])
    vitfold.unfold(model)
    blocks = find(model).blocks
    blocks[0].register_forward_pre_hook(lambda _, args: (_rows(args[0], heads), *args[1:]))
    if name == "VJEPA2Model":
        for block in blocks:
            block.attention.register_forward_pre_hook(
                lambda _, args, kwargs: (args, kwargs | {"position_mask": heads}), with_kwargs=True
            )
    assert stage.tokens == heads.shape[1]
    near([folded], [shown(model, key, pixels)], 1e-10 if attention == "sdpa" else 1e-6)
    assert not torch.allclose(folded, dense, rtol=1e-3)


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    return torch.stack([tokens[row] for tokens, row in zip(x, rows, strict=True)])


def _heads(slots: Tensor) -> Tensor:
    """For each token, the first with the same slot."""
    return (slots[:, None] == slots[None]).int().argmax(dim=1)


@every_model
def test_training_masks_what_leaves(name: str) -> None:
    model = vitfold.fold(video(name).double(), RunLength())
    key, pixels = clips(model)
    packed = shown(model, key, pixels)
    with vitfold.masked():
        near([shown(model, key, pixels)], [packed], 1e-9)
    model.train()
    model(**{key: pixels})[0].square().sum().backward()
    for block in find(model).blocks:
        assert all(w.grad is not None and w.grad.isfinite().all() for w in block.parameters())


def test_runs_begin_where_pixels_move() -> None:
    values = torch.tensor([[0.0, 0.05, 0.1, 0.5, 0.5, 0.0], [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]])
    pixels = values.t().reshape(1, 12, 1).expand(1, 12, 3)
    starts = run_starts(pixels, 6, 0.0625).view(6, 2)
    assert starts[:, 0].tolist() == [0, 0, 0, 6, 6, 10]
    assert starts[:, 1].tolist() == [1, 1, 5, 5, 9, 9]
    assert run_starts(pixels, 6, 0.0).view(6, 2)[:, 0].tolist() == [0, 2, 4, 6, 6, 10]
    nothing = pixels * float("nan")
    assert run_starts(nothing, 6, 0.1).flatten().tolist() == list(range(12))
    assert run_starts(pixels.bfloat16(), 6, 0.0625).shape == (1, 12)
    assert run_starts(pixels[:, :2], 1, 0.1).tolist() == [[0, 1]]


@every_model
def test_patches_show_their_pixels(name: str) -> None:
    """Each is what the convolution of its token sees."""
    family = find(video(name))
    arguments = inputs(family.trunk)
    [clip] = arguments.values()
    pixels = family.pixels(arguments)
    assert pixels is not None
    assert pixels.shape == (2, 48, 2 * 3 * 4 * 4)
    patch = clip[1, 4:6, :, 8:12, 12:16].flatten()
    assert torch.equal(pixels[1, 2 * 16 + 2 * 4 + 3], patch)


def test_a_clip_shorter_than_a_tubelet() -> None:
    model = video("VJEPA2Model", tubelet_size=3)
    [(key, pixels)] = inputs(model).items()
    short = {key: pixels[:, :2]}
    assert find(model).grid(short) == (2, 4, 4)
    pixels[:, 1] = pixels[:, 0]
    trace = vitfold.trace(vitfold.fold(model, RunLength()), short)
    assert trace.counts[-1] == [16, 16]


def test_what_it_refuses() -> None:
    with pytest.raises(MethodError, match="a grid of 5 x 5 has no time"):
        vitfold.fold(registered("vit_tiny_patch16_224"), RunLength())
    with pytest.raises(MethodError, match="a grid of 4 x 4 has no time"):
        vitfold.fold(video("VideoPrismVisionModel"), RunLength())
    with pytest.raises(MethodError, match="threshold=-1: expected a number from 0"):
        RunLength(threshold=-1)
    model = vitfold.fold(video("VideoMAEModel"), RunLength())
    masked = torch.zeros(2, 48, dtype=torch.bool)
    masked[:, ::3] = True
    with pytest.raises(MethodError, match="tokens without a grid has no time"):
        model(**inputs(model), bool_masked_pos=masked)
    with pytest.raises(FoldError, match="RunLength keeps another number of tokens for every image"):
        torch.export.export(model, (), inputs(model), strict=False)


def test_it_is_kept(tmp_path: Path) -> None:
    method = RunLength(threshold=0.25, proportional=False)
    assert from_json(method.to_json()) == method
    assert str(method) == "RunLength(threshold=0.25, proportional=False)"
    model = vitfold.fold(video("VivitModel"), "runlength", threshold=0.25, proportional=False)
    vitfold.save(model, tmp_path)
    loaded = vitfold.load(tmp_path, vitfold.unfold(model))
    assert vitfold.folded(loaded).method == method
