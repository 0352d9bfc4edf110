"""Segmenters: every method and encoder, saving, export, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from support.rest import rest
from support.segment import SMALL, segmenter
from torch import nn

import vitfold
from vitfold.errors import DataError, MethodError, PlanError, ShapeError, UnsupportedModel
from vitfold.saving import sources
from vitfold.saving.models import create_model, save_model
from vitfold.segment import Segmenter, create_segmenter, saved_classes
from vitfold.tools.answers import IGNORED

METHODS = [
    vitfold.ToMe(r=5), vitfold.DFE(r=5, skip=1), vitfold.LGTM(r=5, skip=1), vitfold.Drop(r=5),
    vitfold.Ward(r=5), vitfold.EViT(r=5), vitfold.LTMP(merge_threshold=0.3),
    vitfold.PruneMerge(
        blocks=(1, 2), grid=(6, 6),
        scores=(tuple(float(i * 7 % 36) for i in range(36)), tuple(float(i) for i in range(36))),
    ),
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("decoder", ["linear", "mask"])
def test_every_method_folds_the_encoder(method: Any, decoder: str) -> None:
    """The decoder sees the dense contract's tokens, and unfolding leaves no trace."""
    model, images = segmenter(decoder), torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        dense = model(images)
        assert dense.shape == (2, 4, 48, 48)
        vitfold.fold(model, method)
        output = model(images)
        tokens = model.encoder.forward_features(images)[:, 1:]
        maps = model.decoder(tokens).transpose(1, 2).unflatten(2, (6, 6))
        wanted = F.interpolate(maps, size=(48, 48), mode="bilinear", align_corners=False)
        torch.testing.assert_close(output, wanted)
        alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(output, alone, atol=1e-4, rtol=1e-4)
        assert not torch.equal(output, dense)
        assert torch.equal(vitfold.unfold(model)(images), dense)


ENCODERS = {
    "vit_tiny_patch16_224": {"img_size": 64, **SMALL},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, **SMALL},
    "vit_small_patch14_reg4_dinov2": {"img_size": 56, **SMALL},
    "vit_base_patch16_siglip_224": {"img_size": 64, **SMALL},
    "eva02_tiny_patch14_224": {"img_size": 56, "depth": 2},
    "beit_base_patch16_224": {"img_size": 64, **SMALL},
    "vit_relpos_small_patch16_224": {"img_size": 64, **SMALL},
    "naflexvit_base_patch16_gap": {**SMALL},
}


@pytest.mark.parametrize("name", ENCODERS)
def test_any_foldable_vit_is_an_encoder(name: str, tmp_path: Path) -> None:
    """With nothing to reduce it is what it was; saved, dense or folded, it comes back as it was."""
    model = create_segmenter(name, 3, **ENCODERS[name]).eval()
    images = torch.randn(1, 3, *model.window)
    with torch.no_grad():
        dense = model(images)
        assert torch.equal(vitfold.fold(model, "tome", r=0)(images), dense)
        vitfold.fold(model, "tome", r=2)
        output = model(images)
        vitfold.save(model, tmp_path / "plan", backbone=True)
        assert torch.equal(vitfold.load(tmp_path / "plan")(images), output)
        save_model(vitfold.unfold(model), tmp_path / "dense")
        again = create_model(str(tmp_path / "dense")).eval()
        assert torch.equal(again(images), dense)
        assert saved_classes(str(tmp_path / "dense")) == saved_classes(str(tmp_path / "plan")) == 3


def test_a_search_takes_maps_of_labels_or_says_what_is_wrong_with_them() -> None:
    model, search = segmenter(), vitfold.PruneMerge.search
    images, labels = torch.randn(2, 3, 48, 48), torch.arange(2 * 48 * 48).view(2, 48, 48) % 4
    assert search(model, [(images, labels)], flops=0.7, iterations=1).grid == (6, 6)
    unknown = labels.masked_fill(labels == 3, 255)
    with pytest.raises(DataError, match=r"labels reach from 0 to 255: .* of no class are -100"):
        search(model, [(images, unknown)], iterations=1)
    message = unknown.masked_fill(unknown == 255, IGNORED)
    assert search(model, [(images, message)], iterations=1).scores


def test_avit_reads_out_no_patches() -> None:
    with pytest.raises(MethodError, match="reads out its patches"):
        vitfold.fold(segmenter(), "avit")


def test_flops_are_a_share_of_the_encoders() -> None:
    model, images = segmenter(img_size=96), torch.randn(1, 3, 96, 96)
    whole = vitfold.flops(model.encoder, images)
    decoder = vitfold.flops(model, images) - whole
    vitfold.fold(model, "tome", flops=0.75)
    assert abs(vitfold.flops(model.encoder, images) / whole - 0.75) < 0.01
    more = vitfold.flops(model, images) - vitfold.flops(model.encoder, images)
    assert abs(more - decoder) < 0.02 * whole  # unfolding counts a little


@pytest.mark.parametrize("decoder", ["mask", *rest("linear")])
def test_a_folded_segmenter_compiles_and_exports(decoder: str) -> None:
    model = vitfold.fold(segmenter(decoder), "tome", r=4)
    images = torch.randn(2, 3, 48, 48)
    batch = torch.export.Dim("batch", min=2, max=16)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},)).module()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(program(images), model(images), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(compiled(images), model(images), atol=1e-4, rtol=1e-4)


def test_what_makes_no_segmenter_is_refused(tmp_path: Path) -> None:
    encoder = segmenter().encoder
    with pytest.raises(MethodError, match="mask"):
        Segmenter(encoder, 4, "masks")
    with pytest.raises(MethodError, match="classes=0"):
        Segmenter(encoder, 0)
    with pytest.raises(UnsupportedModel):
        Segmenter(nn.Linear(2, 2), 4)
    with pytest.raises(UnsupportedModel, match="no encoder"):
        Segmenter(nn.Sequential(encoder), 4)
    for wrong in (True, 1, 2.0):
        with pytest.raises(MethodError, match="classes="):
            Segmenter(encoder, wrong)  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="decoder"):
        Segmenter(encoder, 4, ["mask"])  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="slide"):
        segmenter()(torch.randn(1, 3, 64, 64))
    with pytest.raises(ShapeError, match="48"):
        vitfold.fold(segmenter(), "tome", r=2)(torch.randn(1, 3, 64, 64))
    save_model(segmenter(), tmp_path / "m")
    file = tmp_path / "m" / "plan.json"
    plan = json.loads(file.read_text())
    for change in ({"source": "timm"}, {"arguments": {}}, {"more": 1}):
        file.write_text(json.dumps(plan | {"model": plan["model"] | change}))
        with pytest.raises(PlanError, match=r"^plan\.json: model"):
            create_model(str(tmp_path / "m"))
    file.write_text("[" * 200_000)
    with pytest.raises(PlanError):
        create_model(str(tmp_path / "m"))
    file.write_text(json.dumps(plan).replace('"classes": 4', '"classes": 1'))
    with pytest.raises(PlanError, match=r"^plan\.json: model\.arguments\.classes=1"):
        create_model(str(tmp_path / "m"))
    file.write_text(json.dumps(plan))
    weights = tmp_path / "m" / "weights.safetensors"
    weights.rename(tmp_path / "m" / "other.safetensors")
    with pytest.raises(PlanError, match="no such file"):
        create_model(str(tmp_path / "m"))
    weights.write_bytes(b"\x80\x04pickle")
    with pytest.raises(PlanError, match="pickle"):
        create_model(str(tmp_path / "m"))


def before(directory: Path, model: Segmenter) -> Path:
    """A segmenter as it was saved before every model was a plan."""
    new = sources.describe(model)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(new._asdict()))
    save_file(model.state_dict(), directory / "model.safetensors")
    return directory


def test_segmenters_that_were_saved_before_plans_come_back(tmp_path: Path) -> None:
    model, images = segmenter().bfloat16(), torch.randn(1, 3, 48, 48).bfloat16()
    directory = before(tmp_path / "m", model)
    assert saved_classes(str(directory)) == 4
    with torch.no_grad():
        assert torch.equal(create_model(directory).eval()(images), model(images))
    config = json.loads((directory / "config.json").read_text())
    for change, output in (
        ({"source": "timm"}, "source="),
        ({"arguments": {}}, "arguments"),
        ({"more": 1}, "more is unknown"),
        ({"arguments": config["arguments"] | {"classes": 1}}, "arguments.classes=1"),
    ):
        (directory / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(PlanError, match=rf"^config\.json: {output}"):
            create_model(directory)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").rename(directory / "other.safetensors")
    with pytest.raises(PlanError, match=r"no model\.safetensors"):
        create_model(directory)


def test_a_segmenter_keeps_its_precision_and_says_what_it_cannot(tmp_path: Path) -> None:
    model, images = segmenter().bfloat16(), torch.randn(1, 3, 48, 48).bfloat16()
    save_model(model, tmp_path / "m")
    with torch.no_grad():
        assert torch.equal(create_model(str(tmp_path / "m")).eval()(images), model(images))
    odd = segmenter()
    del odd.encoder.pretrained_cfg
    with pytest.raises(PlanError, match="cannot be made by name"):
        save_model(odd, tmp_path / "odd")


def test_timm_finds_the_layers_of_an_encoder() -> None:
    model = Segmenter(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3), 2)
    for kind, encoder in (model, model.encoder), (naflex := naflex_segmenter(), naflex.encoder):
        groups = timm.optim.create_optimizer_v2(
            kind, opt="adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5
        ).param_groups
        own = timm.optim.create_optimizer_v2(
            encoder, opt="adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5
        ).param_groups
        ours, theirs = (
            {
                id(p): (group["weight_decay"], group["lr_scale"])
                for group in g
                for p in group["params"]
            }
            for g in (groups, own)
        )
        for name, values in encoder.named_parameters():
            if not name.startswith("head"):
                assert ours[id(values)][0] == theirs[id(values)][0], name
        assert all(ours[id(values)][1] == 1.0 for values in kind.decoder.parameters())
        steps = {name: ours[id(v)][1] for name, v in encoder.named_parameters()}
        blocks = [steps[f"blocks.{index}.norm1.weight"] for index in range(3)]
        assert blocks == sorted(blocks)
        assert len(set(blocks)) == 3


def naflex_segmenter() -> Segmenter:
    encoder = timm.create_model("naflexvit_base_patch16_gap", depth=3, embed_dim=32, num_heads=2)
    return Segmenter(encoder, 2, "linear")
