"""Hugging Face's video models: clips, whose tokens lie on grids of time, height and width."""

import copy
import pickle
from typing import Any

import pytest
import torch
from support.clips import GRID, NAMES, TRUNKS, inputs, video
from support.compare import near, same, tensors
from support.models import maps
from support.rest import rest
from support.twins import beside_twin, outputs
from torch import Tensor

import vitfold
from vitfold.errors import MethodError, UnsupportedModel
from vitfold.folding.families import find
from vitfold.folding.flops import count, dry_count
from vitfold.methods import Base

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

JOINT = ("VideoMAEModel", "VJEPA2Model", "VivitModel")
"""Those that attend over time and space at once."""

every_name = pytest.mark.parametrize("name", NAMES)
every_trunk = pytest.mark.parametrize("name", TRUNKS)
joint = pytest.mark.parametrize("name", JOINT)

STATES = {"output_hidden_states": True}


def check(model: Any, arguments: dict[str, Any], method: Any = None, **options: Any) -> None:
    """Nothing to reduce changes nothing; merging is what the twin computes, in dense shapes."""
    folded, dense = beside_twin(model, arguments, method or vitfold.ToMe(r=[4, 6]), **options)
    pairs = zip(folded, dense, strict=True)
    alike = (torch.allclose(one, other, rtol=1e-3, atol=1e-4) for one, other in pairs)
    assert not all(alike), "nothing was merged"


def attending(name: str, attention: str, **options: Any) -> Any:
    model = video(name, **options)
    if "Prism" in name and attention == "sdpa":
        pytest.skip("its logits are capped, which torch's attention does not do")
    model.set_attn_implementation(attention)
    return model


@every_name
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_class_folds(name: str, attention: str) -> None:
    model = attending(name, attention)
    check(model, inputs(model))


@every_name
@pytest.mark.parametrize("options", [STATES, {"return_dict": False}])
def test_outputs_keep_their_shapes(name: str, options: dict[str, Any]) -> None:
    model = video(name)
    check(model, inputs(model), **options)


@every_trunk
@pytest.mark.parametrize("cue", ["q", "v", "x_pre", "x_attn", "random"])
def test_every_cue_merges(name: str, cue: str) -> None:
    model = video(name)
    check(model, inputs(model), vitfold.ToMe(r=5, cue=cue))


METHODS = [
    vitfold.DFE(r=5),
    vitfold.Ward(r=5),
    vitfold.PiToMe(r=5),
    vitfold.ToMe(flops=0.8),
    vitfold.ToMe(r=5, proportional=False),
    vitfold.ToMeAround(r=5),
    vitfold.Drop(r=5),
]

OWN = [
    vitfold.MCTF(r=5),
    vitfold.MergeDrop(r=4, drop=2),
    vitfold.LTMP(merge_threshold=0.3, prune_threshold=0.005),
    vitfold.WardCut(flops=0.7),
]
"""Those that need attention of our own."""


@every_trunk
@pytest.mark.parametrize("method", METHODS + OWN, ids=str)
def test_methods_on_grids_of_three_axes(name: str, method: Base) -> None:
    """Shapes stay, and every clip is what it is alone."""
    model = video(name).double()
    arguments = inputs(model, batch=3)
    dense = outputs(model, arguments)
    vitfold.fold(model, method)
    if isinstance(method, vitfold.WardCut):
        find(model).trunk.vitfold.height.fill_(0.8)
    if "Prism" in name and method in OWN[:3]:
        with pytest.raises(UnsupportedModel, match="VideoPrismAttention does not attend by"):
            model(**arguments)
        return
    if "Prism" in name and method in OWN:
        return
    together = outputs(model, arguments)
    assert [t.shape for t in together] == [t.shape for t in dense]
    assert not torch.allclose(together[0], dense[0], rtol=1e-3, atol=1e-4)
    [(key, clips)] = arguments.items()
    with torch.no_grad():
        alone = [model(**{key: clip})[0] for clip in clips.split(1)]
    near([together[0]], [torch.cat(alone)], 1e-9)


@joint
def test_what_needs_a_plane_or_a_class_token_says_so(name: str) -> None:
    model = video(name)
    with pytest.raises(MethodError, match="LGTM merges in windows of an image: a grid of 3 x 4 x"):
        vitfold.fold(model, vitfold.LGTM(r=4))
    if name != "VivitModel":
        with pytest.raises(MethodError, match="class token"):
            vitfold.fold(model, vitfold.EViT(r=4))


def test_frames_of_videoprism_are_images() -> None:
    model = video("VideoPrismVisionModel")
    check(model, inputs(model), vitfold.LGTM(r=4, skip=0))
    arguments = inputs(model)
    stages = maps(vitfold.fold(model, vitfold.ToMe(r=3)), **arguments)
    assert stages[-1].slot.shape == (6, 16)


@joint
def test_grids_follow_clips(name: str) -> None:
    model = video(name)
    family = find(model)
    arguments = inputs(model)
    assert family.grid(arguments) == GRID
    assert family.layout().patches == 48
    trace = vitfold.trace(vitfold.fold(model, vitfold.ToMe(r=5)), arguments)
    assert trace.groups(1).shape == GRID


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_clips_of_other_lengths(frames: int) -> None:
    """V-JEPA 2 repeats a clip that is shorter than a tubelet."""
    model = video("VJEPA2Model")
    [(key, clips)] = inputs(model).items()
    arguments = {key: clips[:, :frames]}
    assert find(model).grid(arguments) == (max(frames // 2, 1), 4, 4)
    check(model, arguments)


def test_the_predictor_of_vjepa_reads_dense_tokens() -> None:
    """With masks of context and target, and after dropping too: what it is given is what the
    encoder shows."""
    model = video("VJEPA2Model").double()
    arguments: dict[str, Any] = inputs(model)
    arguments["context_mask"] = [torch.arange(20).repeat(2, 1)]
    arguments["target_mask"] = [torch.arange(20, 48).repeat(2, 1)]
    for method in (vitfold.ToMe(r=6), vitfold.Drop(r=6)):
        with torch.no_grad():
            out = vitfold.fold(model, method)(**arguments)
            shown, predicted = out.last_hidden_state, out.predictor_output
            again = model.predictor(shown, arguments["context_mask"], arguments["target_mask"])
        assert torch.equal(out.masked_hidden_state, shown[:, :20])
        assert torch.equal(predicted.target_hidden_state, shown[:, 20:])
        assert torch.equal(predicted.last_hidden_state, again.last_hidden_state)


def test_videomae_pretrains_on_what_is_visible() -> None:
    model = video("VideoMAEForPreTraining")
    masked = torch.zeros(2, 48, dtype=torch.bool)
    masked[:, ::3] = True
    arguments = inputs(model) | {"bool_masked_pos": masked}
    dense = outputs(model, arguments)
    same(outputs(vitfold.fold(model, vitfold.ToMe(r=0)), arguments), dense)
    folded = outputs(vitfold.fold(model, vitfold.ToMe(r=4)), arguments)
    assert [t.shape for t in folded] == [t.shape for t in dense]
    assert not torch.allclose(folded[1], dense[1], rtol=1e-3, atol=1e-4)
    assert [m.tokens for m in maps(model, **arguments)[1:]] == [32] * 3


@pytest.mark.parametrize("name", ["VideoMAEForVideoClassification", "VivitModel"])
def test_heads_leave_out_what_was_dropped(name: str) -> None:
    """With attention that does not mix tokens, the others are as if the dropped never were."""
    model = video(name)
    blocks = find(model).blocks
    for block in blocks:
        out = block.attention.output.dense if "MAE" in name else block.attention.o_proj
        out.weight.data.zero_()
    arguments = inputs(model)
    key = "logits" if "MAE" in name else "pooler_output"
    vitfold.fold(model, vitfold.Drop(r=5))
    with torch.no_grad():
        folded = model(**arguments)[key]
    keep = maps(model, **arguments)[-1].keep
    vitfold.unfold(model)

    def pick(_: Any, __: Any, out: Tensor) -> Tensor:
        return torch.stack([tokens[k] for tokens, k in zip(out, keep, strict=True)])

    blocks[-1].register_forward_hook(pick)
    with torch.no_grad():
        near([folded], [model(**arguments)[key]])


@every_trunk
def test_gradients_reach_every_weight_of_a_block(name: str) -> None:
    model = vitfold.fold(video(name), vitfold.ToMe(r=5)).train()
    arguments = inputs(model)
    model(**arguments)[0].square().sum().backward()
    weights = [w for block in find(model).blocks for w in block.parameters()]
    assert all(w.grad is not None and w.grad.isfinite().all() for w in weights)
    before = [w.grad.clone() for w in weights if w.grad is not None]
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**arguments)[0].square().sum().backward()
    near([w.grad for w in weights if w.grad is not None], before)


@joint
def test_thresholds_learn_on_clips(name: str) -> None:
    model = video(name)
    vitfold.fold(model, vitfold.LTMP(merge_threshold=0.5, prune_threshold=0.01)).train()
    model(**inputs(model))[0].square().sum().backward()
    learned = find(model).trunk.vitfold
    assert all(weight.grad is not None and weight.grad.any() for weight in learned.parameters())


@pytest.mark.parametrize("name", [*TRUNKS[:1], *rest(*TRUNKS[1:])])
def test_a_graph_computes_the_same(name: str) -> None:
    model = vitfold.fold(video(name), vitfold.ToMe(r=5))
    arguments = inputs(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        near([compiled(**arguments)[0]], [model(**arguments)[0]])


@every_trunk
def test_copies_and_flops(name: str) -> None:
    model = video(name)
    arguments = inputs(model, batch=1)
    dense = dry_count(model, arguments)
    vitfold.fold(model, vitfold.ToMe(r=5))
    assert dry_count(model, arguments) == count(lambda: model(**arguments)) < dense
    expected = outputs(model, arguments)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        same(outputs(other, arguments), expected)


@joint
def test_hooks_see_what_they_saw(name: str) -> None:
    model = video(name)
    visits: list[Any] = []
    find(model).blocks[1].register_forward_hook(lambda _, __, out: visits.append(out))
    arguments = inputs(model)
    outputs(model, arguments)
    outputs(vitfold.fold(model, vitfold.ToMe(r=0)), arguments)
    assert torch.equal(tensors(visits[0])[0], tensors(visits[1])[0])
    outputs(vitfold.fold(model, vitfold.ToMe(r=4)), arguments)
    assert tensors(visits[2])[0].shape == tensors(visits[1])[0].shape


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("TimesformerModel", "attends over time at each place, then over space in each frame"),
        ("VideomtForUniversalSegmentation", "adds queries before its last blocks"),
    ],
)
def test_what_is_refused_has_a_reason(name: str, why: str) -> None:
    cls = getattr(transformers, name)
    with torch.device("meta"):
        model = cls(cls.config_class())
    with pytest.raises(UnsupportedModel, match=f"{name} cannot be folded: it {why}"):
        vitfold.fold(model, "tome", r=1)
