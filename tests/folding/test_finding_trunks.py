"""Which trunk is found in a model; what was changed by hand, wrapped or subclassed."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from support.compare import check_nothing_to_reduce, check_twin
from support.models import hf, images, registered, scatter
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

import vitfold
from vitfold.errors import FoldError, MethodError, ShapeError, UnsupportedModel
from vitfold.folding.families import find
from vitfold.folding.families.reasons import TEXT, reason


class Heir(VisionTransformer):
    """Calls on its base for what it does not change."""

    def forward_features(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward_features(x, **options) * 2.0

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x[:, 1:].mean(1) + x[:, 0])


class Prompted(VisionTransformer):
    """Adds tokens between its blocks."""

    def forward_features(self, x: Tensor, **options: Any) -> Tensor:
        x = self.norm_pre(self._pos_embed(self.patch_embed(x)))
        for block in self.blocks:
            x = block(torch.cat([x, x[:, :3]], dim=1))
        return self.norm(x)


class Blind(VisionTransformer):
    """Runs other blocks than its own."""

    def forward_features(self, x: Tensor, **options: Any) -> Tensor:
        x = self._pos_embed(self.patch_embed(x))
        for block in nn.Module.__getattr__(self._module, "blocks"):
            x = block(x)
        return self.norm(x)


def own(cls: type = VisionTransformer, **options: Any) -> Any:
    settings = {"img_size": 20, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return scatter(cls(**(settings | options)))


def test_a_subclass_folds() -> None:
    model = own(Heir)
    check_nothing_to_reduce(model, images(model))
    check_twin(model, images(model), vitfold.ToMe(r=4))


def test_a_subclass_that_adds_tokens_is_refused() -> None:
    model = vitfold.fold(own(Prompted), vitfold.ToMe(r=4))
    with pytest.raises(FoldError, match="adds tokens"):
        model(images(model))


def test_a_subclass_that_runs_past_its_blocks_is_refused() -> None:
    model = vitfold.fold(own(Blind), vitfold.ToMe(r=4))
    with pytest.raises(UnsupportedModel, match="does not run its own blocks"):
        model(images(model))


class Mean(VisionTransformer):
    """Reads out in a way of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x)[:, 1:].mean(dim=1))


def test_a_forward_of_its_own_reads_dense_features() -> None:
    model = vitfold.fold(own(Mean), vitfold.ToMe(r=4))
    x = images(model)
    features = model.forward_features(x)
    torch.testing.assert_close(model(x), model.head(features[:, 1:].mean(dim=1)))


class Around(nn.Module):
    """Runs the blocks of a trunk itself."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk._pos_embed(self.trunk.patch_embed(x))
        for block in self.trunk.blocks:
            x = block(x)
        return x


def test_blocks_that_somebody_else_runs_say_that_they_are_dense() -> None:
    trunk = own()
    model, x = Around(trunk), images(trunk)
    dense = model(x)
    vitfold.fold(model, "tome", r=4)
    with pytest.warns(UserWarning, match="outside of its forward: it runs dense"):
        assert torch.equal(model(x), dense)


def test_unfolding_takes_off_nothing_but_the_fold() -> None:
    def wrapper(x: Tensor, **_: Any) -> Tensor:
        return x

    model = own()
    model.forward_features = wrapper
    with pytest.raises(UnsupportedModel, match="forward_features of a VisionTransformer is replac"):
        vitfold.fold(model, "tome", r=2)
    assert model.__dict__["forward_features"] is wrapper
    model = vitfold.fold(own(), "tome", r=2)
    ours = model.blocks[0].forward
    model.blocks[0].forward = wrapper
    with pytest.raises(FoldError, match="replaced after folding"):
        vitfold.unfold(model)
    del model.blocks[0].forward
    with pytest.raises(FoldError, match="replaced after folding"):
        vitfold.unfold(model)
    model.blocks[0].forward = ours
    assert "_vitfold" not in vars(vitfold.unfold(model))


def test_a_block_that_was_exchanged_is_refused() -> None:
    model = vitfold.fold(own(), "tome", r=2)
    model.blocks[0] = own().blocks[0]
    with pytest.raises(FoldError, match="does not run the blocks that were folded"):
        model(images(model))


def test_images_of_other_channels_are_refused() -> None:
    model = vitfold.fold(own(), "tome", r=2)
    with pytest.raises(ShapeError, match=r"images of 1x\d+x\d+ do not fit VisionTransformer"):
        model(images(model)[:, :1])


def test_a_size_that_no_model_has_is_refused() -> None:
    with pytest.raises(ShapeError, match="does not take them"):
        vitfold.fold(timm.create_model("test_vit", img_size=50), "tome", flops=0.7)


def test_what_is_no_model_is_refused() -> None:
    for act in (vitfold.unfold, lambda inputs: vitfold.trace(inputs, torch.zeros(1))):
        with pytest.raises(UnsupportedModel, match=r"int is not a torch\.nn\.Module"):
            act(3)


class OtherBlock(Block):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x, **options) + 1.0


class OtherAttention(timm.layers.Attention):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x, **options) + 1.0


def test_unknown_blocks_and_attention_are_refused() -> None:
    for options, what in (
        ({"block_fn": OtherBlock}, "unknown kind"),
        ({"attn_layer": OtherAttention}, "unknown way"),
    ):
        with pytest.raises(UnsupportedModel, match=what) as refusal:
            vitfold.fold(own(**options), "tome", r=2)
        assert "VisionTransformer cannot be folded" in str(refusal.value)
        assert __name__ in str(refusal.value)


def test_replaced_forwards_are_refused() -> None:
    for module in (lambda m: m, lambda m: m.blocks[1], lambda m: m.blocks[1].attn):
        model = own()
        target = module(model)
        method = target.forward
        target.forward = lambda *args, method=method, **kwargs: method(*args, **kwargs)
        with pytest.raises(UnsupportedModel, match="is replaced"):
            vitfold.fold(model, "tome", r=2)
        target.forward = method  # as accelerate leaves it: what the class says, once more
        vitfold.unfold(vitfold.fold(model, "tome", r=2))


def test_shared_blocks_are_refused() -> None:
    model = own()
    model.blocks = nn.Sequential(model.blocks[0], model.blocks[0])
    with pytest.raises(UnsupportedModel, match="more than once"):
        vitfold.fold(model, "tome", r=2)


def test_blocks_that_change_under_a_fold_are_refused() -> None:
    model = vitfold.fold(own(depth=3), "tome", r=2)
    model.prune_intermediate_layers([0])
    with pytest.raises(FoldError, match="unfold it before"):
        model(images(model))


def test_a_model_around_a_trunk_folds() -> None:
    inner = own(global_pool="avg")
    model = nn.Sequential(inner, nn.ReLU())
    x = images(inner)
    dense = model(x)
    vitfold.fold(model, vitfold.ToMe(r=4))
    assert model(x).shape == dense.shape
    assert not torch.equal(model(x), dense)
    assert torch.equal(vitfold.unfold(model)(x), dense)


def test_two_trunks_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="2 foldable parts"):
        vitfold.fold(nn.ModuleList([own(), own()]), "tome", r=2)


def test_the_reason_of_a_part_is_named() -> None:
    with torch.device("meta"):
        swin = timm.create_model("swin_tiny_patch4_window7_224")
    with pytest.raises(
        UnsupportedModel, match=r"Sequential cannot be folded: of its .*Swin.*window"
    ):
        find(nn.Sequential(swin, nn.ReLU()))
    with pytest.raises(UnsupportedModel, match="no family describes Linear"):
        find(nn.Linear(2, 2))
    with pytest.raises(UnsupportedModel, match=r"not a torch\.nn\.Module"):
        find("vit_base_patch16_224")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models_are_refused(wrap: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(UnsupportedModel, match="before wrapping"):
        vitfold.fold(wrap(own()), "tome", r=2)


def test_a_model_that_leaves_out_blocks_is_refused() -> None:
    class Skips(VisionTransformer):
        def forward_features(self, x: Tensor, **_: Any) -> Tensor:
            x = self._pos_embed(self.patch_embed(x))
            for index in (0, 2):
                x = self.blocks[index](x)
            return self.norm(x)

    model: Any = Skips(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2).eval()
    vitfold.fold(model, vitfold.ToMe(r=1))
    with pytest.raises(FoldError, match="block 2 was called before block 1"):
        model(torch.randn(1, 3, 32, 32))


def test_a_shallow_copy_is_told_from_a_copy() -> None:
    model = vitfold.fold(registered("vit_tiny_patch16_224", depth=2), vitfold.ToMe(r=2))
    other = copy.copy(model)
    with pytest.raises(FoldError, match="shallow copy"):
        vitfold.unfold(other)
    vitfold.unfold(model)
    with pytest.raises(FoldError, match="shallow copy"):
        other(images(model, 1))
    assert model(images(model, 1)).isfinite().all()


# What reads patches, and what reads text


def llava(vision: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    text = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=40,
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision.config, text_config=text)
    )


def encoder_decoder(vision: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    decoder = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        vocab_size=40, is_decoder=True, add_cross_attention=True,
    )  # fmt: skip
    return transformers.VisionEncoderDecoderModel(
        encoder=vision, decoder=transformers.BertLMHeadModel(decoder)
    )


def test_hosts_that_read_patches_are_known() -> None:
    transformers = pytest.importorskip("transformers")
    timm_backbone = transformers.TimmBackboneConfig(
        backbone="vit_tiny_patch16_224", use_pretrained_backbone=False, out_indices=(-1,)
    )
    for model in (
        llava(hf("CLIPVisionModel")),
        encoder_decoder(hf("ViTModel")),
        transformers.TimmBackbone(timm_backbone),
        hf("Dinov2Backbone"),
        nn.Sequential(hf("ViTModel")),  # which hands its patches to somebody
    ):
        with pytest.raises(MethodError, match="reads out its patches"):
            vitfold.fold(model, vitfold.AViT())
    for model in (hf("ViTModel"), hf("ViTForImageClassification"), hf("CLIPModel"), own()):
        vitfold.fold(model, vitfold.AViT())
    vitfold.fold(nn.Sequential(hf("ViTForImageClassification"), nn.Identity()), vitfold.AViT())
    vitfold.fold(nn.Sequential(own(), nn.ReLU()), vitfold.AViT())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("BertModel", True),
        ("CLIPTextModel", True),
        ("BlipForImageTextRetrieval", False),
        ("ViltForImageAndTextRetrieval", False),
        ("PPOCRV5ServerRecForTextRecognition", False),
    ],
)
def test_text_is_what_takes_words_and_no_images(name: str, text: bool) -> None:
    transformers = pytest.importorskip("transformers")
    assert (reason(getattr(transformers, name)) == TEXT) == text


def test_the_nearest_that_folds_is_named() -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
    with pytest.raises(UnsupportedModel, match=r"timm has the same model, which folds"):
        vitfold.fold(model, "tome", r=2)
    with pytest.raises(UnsupportedModel, match=r"vitfold\.register_family"):
        vitfold.fold(nn.Sequential(nn.Linear(2, 2)), "tome", r=2)
