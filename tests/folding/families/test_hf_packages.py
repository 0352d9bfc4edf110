"""Every class of transformers that folds, small, and in what holds it: alone, in heads, in models
of language and images."""

from typing import Any

import pytest
import torch
from support.compare import same, tensors
from support.hf_hosts import HOSTS, host, seen
from support.hf_models import SMALL, TRUNKS, arguments_of, small
from support.models import maps, scatter, twin
from support.rest import rest
from torch import Tensor

import vitfold
from vitfold.errors import UnsupportedModel
from vitfold.folding.families import families, find
from vitfold.folding.families.hf import MODELS
from vitfold.folding.families.holds import HOLDS
from vitfold.folding.families.table import UNDESCRIBED

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

METHOD = vitfold.ToMe(r=[4, 3])

STATES = {"output_hidden_states": True}


def outputs(model: Any, arguments: dict[str, Any], **options: Any) -> list[Tensor]:
    """All tensors that a call hands out, with the same random numbers in every one."""
    torch.manual_seed(0)
    return tensors(model(**arguments, **options))


@pytest.mark.parametrize("name", SMALL)
def test_every_class_folds(name: str) -> None:
    model = small(name)
    arguments = arguments_of(model)
    with torch.no_grad():
        dense = outputs(model, arguments)
        vitfold.fold(model, vitfold.ToMe(r=0))
        same(outputs(model, arguments), dense)
    vitfold.fold(model, METHOD)
    pixels = next(key for key, value in arguments.items() if value.is_floating_point())
    arguments[pixels] = arguments[pixels].clone().requires_grad_()
    folded = outputs(model, arguments)
    assert [t.shape for t in folded] == [t.shape for t in dense]
    assert not all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(folded, dense, strict=True)
    )
    check_gradients(folded, arguments[pixels], model)
    arguments[pixels] = arguments[pixels].detach()
    assert maps(model, **arguments)[2].slots == maps(model, **arguments)[0].tokens - 7
    with torch.no_grad():
        same(outputs(vitfold.unfold(model), arguments), dense)


def check_gradients(folded: list[Tensor], pixels: Tensor, model: Any) -> None:
    """Of what is made of images, where it is made with gradients."""
    live = [t for t in folded if t.requires_grad]
    if type(model).__name__ != "CLIPSegForImageSegmentation":  # which sees images without
        [gradient] = torch.autograd.grad(sum(t.sin().sum() for t in live), pixels)
        assert gradient.isfinite().all()
        assert gradient.any()


@pytest.mark.parametrize("name", TRUNKS)
def test_hidden_states_are_dense(name: str) -> None:
    model = small(name)
    arguments = arguments_of(model)
    with torch.no_grad():
        dense = outputs(model, arguments, **STATES)
        vitfold.fold(model, vitfold.ToMe(r=0))
        same(outputs(model, arguments, **STATES), dense)
        vitfold.fold(model, METHOD)
        folded = outputs(model, arguments, **STATES)
    assert [t.shape for t in folded] == [t.shape for t in dense]


TWINS = [name for name in TRUNKS if not name.startswith(("MLCD", "Pixtral", "Video", "Yolos"))]
"""Those of which a twin is easily made: not with a prefix behind the patches, images one after
another, or positions of a class token."""


@pytest.mark.parametrize("name", TWINS)
def test_folded_models_compute_what_their_twins_do_over_all_tokens(name: str) -> None:
    check_twin(small(name).double())


def check_twin(model: Any) -> None:
    arguments = arguments_of(model)
    arguments = {k: v.double() if v.is_floating_point() else v for k, v in arguments.items()}
    with torch.no_grad():
        folded = outputs(vitfold.fold(model, METHOD), arguments)
        torch.manual_seed(0)
        stages = maps(model, **arguments)
        with twin(vitfold.unfold(model), stages):
            expected = outputs(model, arguments)
    for one, other in zip(folded, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("own", "shared"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_relative_positions_of_data2vec(own: bool, shared: bool, attention: str) -> None:
    options = {"use_relative_position_bias": own, "use_shared_relative_position_bias": shared}
    check_twin(small("Data2VecVisionModel", **options, attn_implementation=attention).double())


@pytest.mark.parametrize("name", [name for name in TRUNKS if "Pose" not in name])
def test_patches_that_are_alike_merge_without_loss(name: str) -> None:
    """Without positions all patches of one colour are alike: they count as often as they were, and
    tokens that are no patches stay as they are."""
    model = small(name).double()
    for key, weight in (*model.named_parameters(), *model.named_buffers()):
        if any(part in key for part in ("pos", "row_emb", "column_emb", "inv_freq")):
            weight.data.zero_()
    arguments = arguments_of(model)
    for key, value in arguments.items():
        if value.is_floating_point():
            arguments[key] = alike(value.double())
    with torch.no_grad():
        dense = outputs(model, arguments)
        folded = outputs(vitfold.fold(model, METHOD), arguments)
    for one, other in zip(folded, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def alike(pixels: Tensor) -> Tensor:
    """One colour all over; where flattened patches come from stays."""
    blank = torch.full_like(pixels, 0.5)
    if pixels.dim() == 3 and pixels.shape[-1] == 14:
        blank[..., :2] = pixels[..., :2]
    return blank


@pytest.mark.parametrize("name", TRUNKS)
def test_other_methods(name: str) -> None:
    model = small(name)
    arguments = arguments_of(model)
    methods = [vitfold.Drop(r=2), vitfold.ToMe(r=2, cue="v")]
    if find(model).class_token:
        methods.append(vitfold.EViT(r=2))
    with torch.no_grad():
        dense = outputs(model, arguments)
        for method in methods:
            folded = outputs(vitfold.fold(model, method), arguments)
            assert [t.shape for t in folded] == [t.shape for t in dense]
            assert all(t.isfinite().all() for t in folded)


@pytest.mark.parametrize("name", HOSTS)
def test_what_holds_a_trunk_folds(name: str) -> None:
    model = host(name)
    with torch.no_grad():
        dense = tensors(seen(model))
        vitfold.fold(model, vitfold.ToMe(r=0))
        same(tensors(seen(model)), dense)
        vitfold.fold(model, METHOD)
        folded = tensors(seen(model))
    assert [t.shape for t in folded] == [t.shape for t in dense]
    assert not all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(folded, dense, strict=True)
    )
    assert find(model).layout().reads_patches
    package = type(model).__module__.split(".")[2]
    assert type(find(model).trunk).__name__ == HOLDS[package].rpartition(".")[2]


COMPILED = (
    "BlipVisionModel",
    "Data2VecVisionModel",
    "FlavaImageModel",
    "MLCDVisionModel",
    "YolosModel",
)
"""One for each way in which a trunk sees its folded layers, and these their tokens."""


@pytest.mark.parametrize("name", [*COMPILED[:1], *rest(*COMPILED[1:])])
def test_folded_models_compile_in_one_graph(name: str) -> None:
    model = vitfold.fold(small(name), METHOD)
    arguments = arguments_of(model)
    torch._dynamo.reset()
    with torch.no_grad():
        eager = outputs(model, arguments)
        compiled = outputs(torch.compile(model, fullgraph=True, backend="eager"), arguments)
    for one, other in zip(compiled, eager, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


# Traps.


def test_tokens_that_detect_are_never_merged() -> None:
    model = vitfold.fold(small("YolosModel"), vitfold.ToMe(r=4))
    arguments = arguments_of(model)
    family = find(model)
    assert (family.prefix, family.suffix, family.class_token) == (4, 3, False)
    for stage in maps(model, **arguments):
        assert torch.equal(stage.keep[:, :4], torch.arange(4).expand(2, -1))
    assert maps(model, **arguments)[-1].slots == 4 + 16 - 3 * 4


def test_rotary_positions_of_a_class_token_go_with_it() -> None:
    model = vitfold.fold(small("MLCDVisionModel"), METHOD)
    tables = list[Any]()

    def hook(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        tables.append(kwargs["position_embeddings"][0])

    for block in find(model).blocks:
        block.self_attn.register_forward_pre_hook(hook, with_kwargs=True)
    first, *others = maps(model, **arguments_of(model))
    assert first.tokens == 17
    for stage, table in zip(others, tables[1:], strict=False):
        assert torch.equal(table.rows, tables[0][stage.keep])


def test_experts_go_by_image() -> None:
    model = small("VitPoseBackbone").double()
    arguments = arguments_of(model) | {"dataset_index": torch.tensor([0, 1])}
    arguments["pixel_values"] = arguments["pixel_values"].double()
    vitfold.fold(model, METHOD)
    with torch.no_grad():
        together = outputs(model, arguments)
        alone = outputs(model, {key: value[1:] for key, value in arguments.items()})
    torch.testing.assert_close(together[0][1:], alone[0])
    with pytest.raises(vitfold.ShapeError, match="dataset_index"):
        model(pixel_values=arguments["pixel_values"])


def test_blocks_behind_the_queries_of_eomt_are_left_alone() -> None:
    model = small("EomtForUniversalSegmentation", num_blocks=2)
    assert find(model).depth == 1
    assert find(model).blocks == tuple(model.layers[:1])


def test_patches_of_mae_lie_on_no_grid() -> None:
    layout = find(small("ViTMAEModel")).layout()
    assert (layout.tokens, layout.grid) == (1 + 11, None)


def test_images_of_several_sizes_get_what_they_get_alone() -> None:
    """In RADIO and Pixtral they come one after another, in Idefics2 they are padded."""
    model = vitfold.fold(small("PixtralVisionModel").double(), METHOD)
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        together = model(pixels, image_sizes=[(16, 12), (8, 16)]).last_hidden_state[0]
        first = model(pixels[:1, :, :, :12]).last_hidden_state[0]
        second = model(pixels[1:, :, :8]).last_hidden_state[0]
    torch.testing.assert_close(together, torch.cat([first, second]))


def test_radio_takes_images_one_after_another() -> None:
    model = vitfold.fold(small("RadioModel").double(), METHOD)
    shapes = torch.tensor([[4, 4], [3, 5]])
    pixels = torch.randn(31, 48, dtype=torch.float64)
    with torch.no_grad():
        together = model(pixels, image_grid_hw=shapes)
        alone = [
            model(part, image_grid_hw=shape[None])
            for part, shape in zip(pixels.split([16, 15]), shapes, strict=True)
        ]
    torch.testing.assert_close(together.summary, torch.cat([one.summary for one in alone]))
    torch.testing.assert_close(together.features, torch.cat([one.features for one in alone]))


def test_one_of_several_trunks_is_folded() -> None:
    """DepthPro has encoders of patches and of the image."""
    encoder = {
        "model_type": "dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 4,
        "image_size": 16,
    }
    config = transformers.DepthProConfig(
        image_model_config=encoder,
        patch_model_config=encoder,
        fov_model_config=encoder,
        patch_size=16,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[8, 8],
        scaled_images_feature_dims=[8, 8, 8],
        fusion_hidden_size=8,
        use_fov_model=False,
    )
    model = scatter(transformers.DepthProModel(config))
    with pytest.raises(vitfold.UnsupportedModel, match="2 foldable parts"):
        vitfold.fold(model, METHOD)
    x = torch.randn(1, 3, 64, 64)
    dense = model(x).features
    vitfold.fold(model.encoder.patch_encoder.model, vitfold.ToMe(r=4))
    folded = model(x).features
    assert [t.shape for t in folded] == [t.shape for t in dense]
    assert not all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(folded, dense, strict=True))


# The table.

GRANITE = {
    "deepstack_layer_map": [[-2, 0]],
    "spatial_target_layers": [0],
    "downsample_rate": "1/2",
}

PERCEPTION = {
    "vision_config": {
        "model_type": "timm_wrapper",
        "architecture": "vit_pe_core_tiny_patch16_384",
        "model_args": {"embed_dim": 32, "num_heads": 4, "depth": 3, "img_size": 64},
    }
}

FOUND: dict[str, dict[str, Any]] = {
    "ColModernVBertForRetrieval": {},
    "ColQwen2ForRetrieval": {},
    "Granite4VisionForConditionalGeneration": GRANITE,
    "Granite4VisionModel": GRANITE,
    "MistralLarge4ForConditionalGeneration": {},
    "MistralLarge4Model": {},
    "NemotronH_Omni_Reasoning_V3": {},
    "PI0ForConditionalGeneration": {},
    "PI0Model": {},
    "PerceptionLMForConditionalGeneration": PERCEPTION,
    "PerceptionLMModel": PERCEPTION,
    "T5Gemma2ForConditionalGeneration": {},
    "T5Gemma2Model": {},
    "Tipsv2DptForDepthEstimation": {},
    "Tipsv2DptForNormalEstimation": {},
    "Tipsv2DptForSemanticSegmentation": {},
    "UltraVBertModel": {},
}
"""What holds a trunk and is found, not run: as large as it is, and from shapes alone."""


IN_WINDOWS = (
    "Sam3TrackerModel",
    "Sam3TrackerVideoModel",
    "Sam3VideoModel",
    "VitMatteForImageMatting",
)
"""What `test_windowed.py` builds."""


OF_TWO = ("DeepseekVLHybridModel", "DeepseekVLHybridForConditionalGeneration")
"""They hold two encoders that fold."""


def test_every_class_that_folds_is_built() -> None:
    own = {name for names in MODELS.values() for name in names}
    listed = {n for f in families().folded if f.library == "transformers" for n in f.names}
    assert own <= listed
    assert listed - own <= set(HOSTS) | set(FOUND) | set(IN_WINDOWS) | set(OF_TWO)
    assert set(SMALL) <= own


PLAIN = frozenset(
    """
    aimv2 altclip audio_spectrogram_transformer blip blip_2 chinese_clip clipseg data2vec dpt
    eomt eomt_dinov3 flava git groupvit ijepa instructblip internvl janus kosmos2 kosmos2_5
    metaclip_2 mlcd owlv2 owlvit paddleocr_vl phi4_multimodal pixio pixtral radio sapiens2
    seggpt tipsv2 video_llama_3 vit_mae vit_msn vitpose_backbone x_clip yolos idefics2
    idefics3 smolvlm aria depth_pro vitmatte depth_anything prompt_depth_anything zoedepth
    vision_encoder_decoder
    """.split()  # noqa: SIM905
)
"""Packages of transformers with a plain vision transformer, or one in part."""


def test_plain_vision_transformers_fold_or_are_refused_for_a_reason() -> None:
    message = families()
    hf = [f for f in message.folded + message.refused if f.library == "transformers"]
    names = {name for f in hf for name in f.names}
    assert len(names) == sum(len(f.names) for f in hf), "a class is listed twice"
    told = {f.module for f in hf if f.reason != UNDESCRIBED}
    assert set() == PLAIN - told


@pytest.mark.parametrize("name", FOUND)
def test_what_is_not_run_here_holds_its_trunk(name: str) -> None:
    cls = getattr(transformers, name)
    with torch.device("meta"):
        model = cls(cls.config_class(**FOUND[name]))
    assert type(find(model).trunk).__name__ == HOLDS[cls.__module__.split(".")[2]].split(".")[-1]


@pytest.mark.parametrize("name", OF_TWO)
def test_of_two_encoders_one_is_given(name: str) -> None:
    """One for the whole image, and SAM's for its details: each folds."""
    with torch.device("meta"):
        model: Any = getattr(transformers, name)(transformers.DeepseekVLHybridConfig())
    with pytest.raises(UnsupportedModel, match="has 2 foldable parts"):
        find(model)
    inner = getattr(model, "model", model)
    assert "Siglip" in type(find(inner.vision_model).trunk).__name__
    assert "Sam" in type(find(inner.high_res_vision_model).trunk).__name__
