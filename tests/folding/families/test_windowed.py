"""Encoders that attend in windows: SAM, ViTDet and what has their layers. What a block reduces is
all there again after it."""

from typing import Any

import pytest
import torch
from support.compare import near, same, tensors
from support.rest import rest
from support.windowed import HOLDERS, TRUNKS, arguments_of, samvit, windowed
from torch import Tensor

import vitfold
from vitfold.folding.calls import fold_of, follow
from vitfold.folding.families import families, find
from vitfold.folding.families.hf import MODELS
from vitfold.folding.families.windowed import Windowed
from vitfold.methods import Step
from vitfold.methods.tome_around import Around

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

NAMES = ["samvit", *TRUNKS]

ONE_OF_EACH = ["samvit", "SamVisionModel", "VitDetBackbone", "Sam3ViTModel", "RfDetrDinov2Backbone"]
"""One for each way in which windows lie, and attend."""

every_trunk = pytest.mark.parametrize("name", NAMES)
each_kind = pytest.mark.parametrize("name", ONE_OF_EACH)

AROUND = vitfold.ToMeAround(r=24)

METHODS = [
    AROUND,
    vitfold.ToMeAround(r=24, window=5),
    vitfold.ToMe(r=24),
    vitfold.Ward(r=24),
    vitfold.ToMe(r=24, cue="v"),
    vitfold.MCTF(r=24),
    vitfold.PiToMe(r=24),
    vitfold.LGTM(r=24, skip=0),
]

STATES = {"output_hidden_states": True}


@torch.no_grad()
def outputs(model: Any, arguments: dict[str, Tensor], **options: Any) -> list[Tensor]:
    """All tensors that a call hands out."""
    if type(model).__name__ == "VisionTransformerSAM":
        return [model(arguments["x"])]
    return tensors(model(**arguments, **options))


def check(name: str, **options: Any) -> None:
    """Nothing to reduce changes no bit; merging changes what is handed out and not its shapes, and
    computes less."""
    model = windowed(name)
    arguments = arguments_of(model)
    dense, flops = outputs(model, arguments, **options), vitfold.flops(model, arguments)
    vitfold.fold(model, vitfold.ToMeAround(r=0))
    same(outputs(model, arguments, **options), dense)
    vitfold.fold(model, AROUND)
    folded = outputs(model, arguments, **options)
    assert [t.shape for t in folded] == [t.shape for t in dense]
    assert not all(torch.allclose(a, b, atol=1e-3) for a, b in zip(folded, dense, strict=True))
    assert vitfold.flops(model, arguments) < flops
    same(outputs(vitfold.unfold(model), arguments, **options), dense)


@pytest.mark.parametrize("name", [*NAMES, *HOLDERS])
def test_every_class_folds(name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", [name for name in TRUNKS if name not in ("Sam3VisionModel",)])
def test_layers_that_are_handed_out_are_dense(name: str) -> None:
    check(name, **STATES)


def test_every_class_is_built_or_found() -> None:
    own = {n for place, ns in MODELS.items() if _is_windowed(place) for n in ns}
    listed = {n for f in families().folded if f.library == "transformers" for n in f.names}
    assert own <= listed
    assert own <= set(TRUNKS) | set(HOLDERS) | set(FOUND)


def _is_windowed(place: str) -> bool:
    from vitfold.folding.families.registry import REGISTRY

    return issubclass(REGISTRY[place], Windowed)


FOUND = {
    "GotOcr2Model": "GotOcr2VisionEncoder",
    "GotOcr2ForConditionalGeneration": "GotOcr2VisionEncoder",
    "SLANeXtForTableRecognition": "SLANeXtVisionEncoder",
    "PPFormulaNetModel": "PPFormulaNetVisionModel",
    "PPFormulaNetForConditionalGeneration": "PPFormulaNetVisionModel",
    "DeepseekOcr2VisionModel": "DeepseekOcr2SamVisionEncoder",
    "DeepseekOcr2Model": "DeepseekOcr2SamVisionEncoder",
    "DeepseekOcr2ForConditionalGeneration": "DeepseekOcr2SamVisionEncoder",
    "UnlimitedOcrVisionModel": "UnlimitedOcrSamVisionEncoder",
    "UnlimitedOcrModel": "UnlimitedOcrSamVisionEncoder",
    "UnlimitedOcrForConditionalGeneration": "UnlimitedOcrSamVisionEncoder",
    "Sam3Model": "Sam3ViTModel",
    "Sam3LiteTextModel": "Sam3ViTModel",
    "Sam3TrackerModel": "Sam3ViTModel",
    "Sam3TrackerVideoModel": "Sam3ViTModel",
    "Sam3VideoModel": "Sam3ViTModel",
}
"""What holds a trunk and is found, not run: as large as it is, and from shapes alone."""

DEEPSEEK = {"text_config": {"num_hidden_layers": 1, "mlp_layer_types": ["dense"]}}

OPTIONS = {"DeepseekOcr2Model": DEEPSEEK, "DeepseekOcr2ForConditionalGeneration": DEEPSEEK}


@pytest.mark.parametrize("name", FOUND)
def test_what_is_not_run_here_holds_its_trunk(name: str) -> None:
    cls = getattr(transformers, name)
    with torch.device("meta"):
        model = cls(cls.config_class(**OPTIONS.get(name, {})))
    assert type(find(model).trunk).__name__ == FOUND[name]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Sam2Model", "windows, in a pyramid that pools its queries"),
        ("Sam2VisionModel", "windows, in a pyramid that pools its queries"),
        ("Sam2VideoModel", "windows, in a pyramid that pools its queries"),
        ("EdgeTamModel", "convolutional network"),
        ("EdgeTamVideoModel", "convolutional network"),
    ],
)
def test_what_is_no_plain_trunk_is_refused_for_its_reason(name: str, why: str) -> None:
    cls = getattr(transformers, name)
    with torch.device("meta"):
        model = cls(cls.config_class())
    with pytest.raises(vitfold.UnsupportedModel, match=why):
        vitfold.fold(model, AROUND)


# Blocks.


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@each_kind
def test_halves_over_sequences_are_the_block(
    name: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a step changes nothing, sequences through both halves are what the block makes of the
    map: padding of windows is one key, and positions are where they were."""
    model = windowed(name)
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation(attention)
    arguments = arguments_of(model)
    dense = outputs(model, arguments, **STATES)
    monkeypatch.setattr(Around, "enter", Step.enter)
    monkeypatch.setattr(Around, "leave", Step.leave)
    near(outputs(vitfold.fold(model, AROUND), arguments, **STATES), dense)


@pytest.mark.parametrize(
    "options", [{"use_rel_pos": False}, {"qkv_bias": False}, {"qk_norm": True}]
)
def test_padding_is_one_key_however_attention_is_made(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = samvit(**({"use_rel_pos": True} | options))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, 3, 40, 28)
    with torch.no_grad():
        dense = model(x)
        monkeypatch.setattr(Around, "enter", Step.enter)
        monkeypatch.setattr(Around, "leave", Step.leave)
        near([vitfold.fold(model, vitfold.ToMeAround(r=9))(x)], [dense])


@pytest.mark.parametrize("block", [0, 1])
@torch.no_grad()
def test_a_merged_block_computes_what_it_says(block: int) -> None:
    """Spelled out for every query: keys weigh by their sizes, positions are those of the token that
    stays, and each place of padding is a key of its own."""
    model = windowed("SamVisionModel").double()
    x = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    numbers = [0] * 4
    numbers[block] = 24
    seen = [t.double() for t in model(x, **STATES).hidden_states]
    vitfold.fold(model, vitfold.ToMeAround(r=numbers))
    stage = vitfold.trace(model, x).maps[block]
    out = model(x, **STATES).hidden_states[block + 1]
    layer = find(model).blocks[block]
    expected = spelled_out(layer, seen[block].flatten(1, 2)[0], stage.slot[0], stage.keep[0])
    torch.testing.assert_close(out.flatten(1, 2)[0], expected)


def spelled_out(layer: Any, x: Tensor, slot: Tensor, keep: Tensor) -> Tensor:
    """A SAM layer over the tokens `x[N, C]` of ten by ten places, merged so."""
    side = layer.window_size or 10
    places = [divmod(place, 10) for place in range(100)]
    window = [(y // side, x // side) for y, x in places]
    merged = torch.stack([x[slot == s].mean(0) for s in range(len(keep))])
    sizes = [int((slot == s).sum()) for s in range(len(keep))]
    heads, attn = layer.attn.num_attention_heads, layer.attn
    qkv = attn.qkv(layer.layer_norm1(merged)).view(len(keep), 3, heads, -1)
    blank = attn.qkv(torch.zeros_like(merged[:1])).view(3, heads, -1)
    after = []
    for s, own in enumerate(keep.tolist()):
        keys = [
            (qkv[t, 1], qkv[t, 2], places[other], sizes[t])
            for t, other in enumerate(keep.tolist())
            if window[other] == window[own]
        ]
        keys += [(blank[1], blank[2], place, 1) for place in outside(window[own], side)]
        after.append(attended(attn, qkv[s, 0], places[own], keys))
    halfway = merged + attn.proj(torch.stack(after))
    added = halfway + layer.mlp(layer.layer_norm2(halfway)) - merged
    return x + added[slot]


def outside(window: tuple[int, int], side: int) -> list[tuple[int, int]]:
    """The places of a window that lie outside of the map."""
    ys, xs = (range(at * side, (at + 1) * side) for at in window)
    return [(y, x) for y in ys for x in xs if y >= 10 or x >= 10]


def attended(attn: Any, q: Tensor, at: tuple[int, int], keys: list[Any]) -> Tensor:
    """`[C]`: what one query attends to."""
    middle = len(attn.rel_pos_h) // 2
    logits = torch.stack(
        [
            (q * k).sum(-1) * attn.scale
            + (q * attn.rel_pos_h[at[0] - place[0] + middle]).sum(-1)
            + (q * attn.rel_pos_w[at[1] - place[1] + middle]).sum(-1)
            + torch.tensor(float(size)).log()
            for k, _, place, size in keys
        ]
    )
    weights = logits.softmax(0)
    values = torch.stack([v for _, v, _, _ in keys])
    return (weights.unsqueeze(-1) * values).sum(0).flatten()


@pytest.mark.parametrize("name", NAMES)
def test_patches_that_are_alike_merge_without_loss(name: str) -> None:
    """Without positions all patches of one colour are alike, and count as often as they were."""
    model = windowed(name).double()
    for key, weight in (*model.named_parameters(), *model.named_buffers()):
        if any(part in key for part in ("pos", "inv_freq")):
            weight.data.zero_()
    arguments = {k: torch.full_like(v.double(), 0.5) for k, v in arguments_of(model).items()}
    dense = outputs(model, arguments)
    for method in (AROUND, vitfold.ToMe(r=24)):
        if _convolves(model):  # over what padding of a map adds to its edges
            method = vitfold.ToMeAround(r=[24, 0, 0, 0])
        near(outputs(vitfold.fold(model, method), arguments), dense)


def _convolves(model: Any) -> bool:
    return any(getattr(block, "use_residual_block", False) for block in find(model).blocks)


@pytest.mark.parametrize("method", METHODS, ids=str)
@each_kind
def test_merging_methods_work_in_windows(name: str, method: Any) -> None:
    model = windowed(name)
    arguments = arguments_of(model)
    dense = outputs(model, arguments)
    folded = outputs(vitfold.fold(model, method), arguments)
    assert [t.shape for t in folded] == [t.shape for t in dense]
    assert all(t.isfinite().all() for t in folded)
    assert not all(torch.allclose(a, b, atol=1e-3) for a, b in zip(folded, dense, strict=True))


@pytest.mark.parametrize(
    ("method", "why"),
    [
        (vitfold.Drop(r=4), "may drop tokens"),
        (vitfold.MergeDrop(r=4, drop=2), "may drop tokens"),
        (vitfold.LTMP(), "another number of tokens for every image"),
        (vitfold.DynamicViT(r=8), "learns"),
    ],
    ids=str,
)
def test_methods_that_cannot_give_tokens_back_are_refused(method: Any, why: str) -> None:
    with pytest.raises(vitfold.MethodError, match=f"{type(method).__name__} .*{why}.*ToMeAround"):
        vitfold.fold(samvit(), method)


@each_kind
def test_gradients_flow_and_checkpointing_gives_the_same(name: str) -> None:
    model = vitfold.fold(windowed(name), AROUND)
    arguments = arguments_of(model)
    pixels = next(iter(arguments))
    arguments[pixels].requires_grad_()
    plain = torch.autograd.grad(loss(model, arguments), arguments[pixels])[0]
    assert plain.isfinite().all()
    assert plain.any()
    if getattr(model, "supports_gradient_checkpointing", False):
        model.activation_checkpointing_enable()
        for module in model.modules():  # recomputed in training alone; dropout stays off
            if getattr(module, "gradient_checkpointing", None) is True:
                module.training = True
    elif hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing()
    again = torch.autograd.grad(loss(model, arguments), arguments[pixels])[0]
    torch.testing.assert_close(again, plain)


def loss(model: Any, arguments: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(0)
    out = model(*arguments.values()) if "x" in arguments else model(**arguments)
    made = [out] if isinstance(out, Tensor) else tensors(out)
    return sum((t.sin().sum() for t in made), torch.zeros(()))


@pytest.mark.parametrize(
    "name", ["samvit", *rest(*(name for name in ONE_OF_EACH if name != "samvit"))]
)
def test_folded_models_compile_in_one_graph(name: str) -> None:
    model = vitfold.fold(windowed(name), vitfold.ToMeAround(r=[24, 24]))
    arguments = arguments_of(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        out = compiled(*arguments.values()) if "x" in arguments else compiled(**arguments)
    made = [out] if isinstance(out, Tensor) else tensors(out)
    near(made, outputs(model, arguments))


# What is told.


def test_sequences_lose_their_share() -> None:
    """Of ten by ten patches in windows of four by four, four windows are whole; each loses the same
    share of its patches."""
    model = vitfold.fold(samvit(), vitfold.ToMeAround(r=[50, 50, 25]))
    traced = vitfold.trace(model, torch.randn(2, 3, 40, 40))
    halves = 4 * 8 + 2 * 2 * 4 + 2
    assert traced.counts == [
        [100 - halves] * 2,
        [50] * 2,
        [100 - (4 * 4 + 4 * 2 + 1)] * 2,
        [100] * 2,
    ]
    assert [stage.slots for stage in traced.maps] == [counts[0] for counts in traced.counts]
    window = torch.arange(100).view(10, 10)
    number = (window // 10 // 4 * 3 + window % 10 // 4).flatten()
    for image in traced.maps[0].keep.gather(1, traced.maps[0].slot):
        assert torch.equal(number[image], number), "tokens merged across windows"


@pytest.mark.parametrize("name", ["RfDetrDinov2Backbone", "LwDetrViTBackbone"])
def test_windows_in_a_batch_are_of_the_images(name: str) -> None:
    model = vitfold.fold(windowed(name), vitfold.ToMeAround(r=32))
    [traced] = [vitfold.trace(model, arguments_of(model)["pixel_values"])]
    layout = find(model).layout()
    assert traced.counts == [[layout.tokens - 32] * 2] * 4
    groups = traced.groups(0, block=0)
    for y in (0, 4):
        for x in (0, 4):
            own = groups[y : y + 4, x : x + 4].unique()
            assert len(own) == 8
            assert (groups.unsqueeze(-1) == own).any(-1).sum() == 16, "tokens left their window"


@each_kind
def test_images_do_not_see_each_other(name: str) -> None:
    model = vitfold.fold(windowed(name).double(), AROUND)
    arguments = {k: v.double() for k, v in arguments_of(model).items()}
    together = outputs(model, arguments)
    alone = outputs(model, {k: v[1:] for k, v in arguments.items()})
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[1:], one)


def test_sam_hq_reads_dense_maps_of_its_global_blocks() -> None:
    model = vitfold.fold(windowed("SamHQVisionModel"), AROUND)
    maps = model(arguments_of(model)["pixel_values"]).intermediate_embeddings
    assert [m.shape for m in maps] == [(2, 10, 10, 32)] * 2


def test_sam3_refuses_padded_windows_in_words() -> None:
    model = windowed("Sam3ViTModel")
    vitfold.fold(model, AROUND)
    with pytest.raises(vitfold.UnsupportedModel, match="multiple of 16"):
        model(torch.randn(1, 3, 24, 32))


def test_rotary_positions_of_timm_are_refused() -> None:
    model = samvit(use_rel_pos=False, use_rope=True)
    with pytest.raises(vitfold.UnsupportedModel, match="use_rope"):
        vitfold.fold(model, AROUND)


def test_a_share_of_the_flops_is_met() -> None:
    model = samvit()
    x = torch.randn(1, 3, 40, 40)
    dense = vitfold.flops(model, x)
    vitfold.fold(model, vitfold.ToMeAround(flops=0.7))
    assert vitfold.flops(model, x) / dense == pytest.approx(0.7, abs=0.02)


def test_plans_say_that_tokens_come_back() -> None:
    model = vitfold.fold(samvit(), vitfold.ToMe(r=24))
    run = follow(model, torch.randn(1, 3, 40, 40))
    assert all(step and step.aside and not step.removes for step in run.plan)
    assert fold_of(model).family.layout().within
