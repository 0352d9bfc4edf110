"""A class for every pixel: the model, its windows, its images, its score, and the commands."""

import itertools
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.cli import vitfold_
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image

import vitfold
from vitfold.data import SceneSource
from vitfold.errors import DataError, MethodError, PlanError, ShapeError, UnsupportedModel
from vitfold.folding.calls import fold_of
from vitfold.saving.models import create_model, create_segmenter, save_model, saved_classes
from vitfold.segment import Labels, Scenes, Segmenter, classes_in, open_scenes, score, slide
from vitfold.segment.looks import Augment, Look, Window
from vitfold.segment.scenes import annotation_of
from vitfold.segment.windows import corners
from vitfold.tools.answers import IGNORED, cross_entropy
from vitfold.train.judge import MeanIoU

SMALL: dict[str, Any] = {"embed_dim": 48, "num_heads": 3, "depth": 3}
HALF = ((0.5,) * 3, (0.5,) * 3)
METHODS = [
    vitfold.ToMe(r=5), vitfold.DFE(r=5, skip=1), vitfold.LGTM(r=5, skip=1), vitfold.Drop(r=5),
    vitfold.Ward(r=5), vitfold.EViT(r=5), vitfold.LTMP(merge_threshold=0.3),
    vitfold.PruneMerge(
        blocks=(1, 2), grid=(6, 6),
        scores=(tuple(float(i * 7 % 36) for i in range(36)), tuple(float(i) for i in range(36))),
    ),
]  # fmt: skip


def segmenter(decoder: str = "mask", **options: Any) -> Segmenter:
    torch.manual_seed(0)
    given = {"img_size": 48, "patch_size": 8, **SMALL, **options}
    return create_segmenter("vit_tiny_patch16_224", 4, decoder, **given).eval()


def scenes(root: Path, number: int = 5, size: tuple[int, int] = (60, 44)) -> Path:
    """Pictures with a bright square on dark ground: class 1 on class 0; a corner has no class."""
    for folder in ("images", "annotations"):
        (root / folder).mkdir(parents=True)
    for place in range(number):
        picture, labels = torch.full((3, size[1], size[0]), 40), torch.zeros(size[1], size[0])
        picture[:, 8 : 16 + place, 10:30], labels[8 : 16 + place, 10:30] = 210, 1
        labels[:4, :4] = 9
        to_pil_image(picture.byte()).save(root / "images" / f"{place}.png")
        to_pil_image(labels.byte()).save(root / "annotations" / f"{place}.png")
    return root


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("decoder", ["linear", "mask"])
def test_every_method_folds_the_encoder(method: Any, decoder: str) -> None:
    """The decoder sees the dense contract's tokens, and unfolding leaves no trace."""
    model, images = segmenter(decoder), torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        dense = model(images)
        assert dense.shape == (2, 4, 48, 48)
        vitfold.fold(model, method)
        said = model(images)
        tokens = model.encoder.forward_features(images)[:, 1:]
        maps = model.decoder(tokens).transpose(1, 2).unflatten(2, (6, 6))
        wanted = F.interpolate(maps, size=(48, 48), mode="bilinear", align_corners=False)
        torch.testing.assert_close(said, wanted)
        alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(said, alone, atol=1e-4, rtol=1e-4)
        assert not torch.equal(said, dense)
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
        said = model(images)
        vitfold.save(model, tmp_path / "plan", backbone=True)
        assert torch.equal(vitfold.load(tmp_path / "plan")(images), said)
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
    told = unknown.masked_fill(unknown == 255, IGNORED)
    assert search(model, [(images, told)], iterations=1).scores


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


@pytest.mark.parametrize("decoder", ["linear", "mask"])
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
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    for change in ({"source": "timm"}, {"arguments": {}}, {"more": 1}):
        (tmp_path / "m" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(PlanError):
            create_model(str(tmp_path / "m"))
    (tmp_path / "m" / "config.json").write_text("[" * 200_000)
    with pytest.raises(PlanError):
        create_model(str(tmp_path / "m"))
    wrong = json.dumps(config).replace('"classes": 4', '"classes": 1')
    (tmp_path / "m" / "config.json").write_text(wrong)
    with pytest.raises(PlanError, match=r"^config\.json: arguments\.classes=1"):
        create_model(str(tmp_path / "m"))
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "other.safetensors")
    with pytest.raises(PlanError, match=r"no model\.safetensors"):
        create_model(str(tmp_path / "m"))
    (tmp_path / "m" / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(PlanError, match="pickle"):
        create_model(str(tmp_path / "m"))


# Windows.

sizes = st.integers(1, 40)


@given(length=sizes, window=st.integers(1, 20), data=st.data())
def test_windows_cover_an_axis(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    starts = corners(length, window, stride)
    seen = {pixel for start in starts for pixel in range(start, start + window)}
    assert set(range(length)) <= seen
    assert starts == sorted(set(starts))
    assert max(seen) < max(length, window)


@settings(deadline=None, max_examples=50)
@given(height=sizes, width=sizes, window=st.tuples(st.integers(3, 12), st.integers(3, 12)),
       data=st.data())  # fmt: skip
def test_sliding_says_of_each_pixel_what_its_windows_say(
    height: int, width: int, window: tuple[int, int], data: st.DataObject
) -> None:
    """A model that looks at one pixel at a time gives the same as on the whole image; one that
    says one number a window, the mean over those that see the pixel."""
    stride = data.draw(st.none() | st.integers(1, min(window)))
    images = torch.randn(2, 3, height, width, dtype=torch.float64)
    said = slide(lambda x: x[:, :2] * 2, images, window, stride)
    torch.testing.assert_close(said, images[:, :2] * 2)
    numbers = itertools.count(1)
    total, seen = torch.zeros(2, height, width), torch.zeros(height, width)
    for y in corners(height, window[0], stride or window[0]):
        for x in corners(width, window[1], stride or window[1]):
            part = (slice(y, y + window[0]), slice(x, x + window[1]))
            for image in range(2):
                total[(image, *part)] += next(numbers)
            seen[part] += 1
    numbers = itertools.count(1)

    def number(some: Tensor) -> Tensor:
        found = torch.tensor([float(next(numbers)) for _ in some])
        return found[:, None, None, None].expand(-1, 1, *some.shape[-2:])

    torch.testing.assert_close(slide(number, images.float(), window, stride)[:, 0], total / seen)


def test_a_stride_beyond_the_window_is_refused() -> None:
    for stride in (9, 0, 2.5, "4", True):
        with pytest.raises(DataError, match="expected 1 to 8"):
            slide(lambda x: x, torch.zeros(1, 3, 20, 20), (8, 12), stride)  # type: ignore[arg-type]
    assert slide(segmenter(), torch.zeros(0, 3, 60, 50), (48, 48)).shape == (0, 4, 60, 50)


# Images and labels.


def test_scenes_lie_in_folders_tars_and_as_ade20k_has_them(tmp_path: Path) -> None:
    scenes(tmp_path / "a" / "val")
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        tar.add(tmp_path / "a" / "val", "./")
    ade = tmp_path / "ade"
    for kind in ("images", "annotations"):
        (ade / kind).mkdir(parents=True)
        (tmp_path / "a" / "val" / kind).rename(ade / kind / "val")
    labels = Labels(2, ignored=9)
    found = [
        open_scenes(tmp_path, "val", labels),
        open_scenes(tmp_path / "val.tar", "train", labels),
        open_scenes(ade, "val", labels),
    ]
    for place in found:
        assert len(place) == 5
        image, label = place[4]
        assert image.shape == (3, 44, 60)
        assert label.shape == (44, 60)
        assert set(label.unique().tolist()) == {IGNORED, 0, 1}
        assert torch.equal(image[0] > 100, label == 1)
    assert classes_in(open_scenes(ade, "val", Labels(100, ignored=9))) == 2
    half = SceneSource(ade, "val[40%:]", labels).open()
    assert len(half) == 3
    path = ade / "images" / "val" / "2.png"
    truth = found[2][2][1]
    assert torch.equal(annotation_of(path, labels), truth)  # type: ignore[arg-type]
    assert annotation_of(tmp_path / "2.png", labels) is None
    beside = ade / "annotations" / "val" / "2.png"
    beside.rename(beside.with_suffix(".PNG"))  # as cameras name them, and `open_scenes` takes them
    assert torch.equal(annotation_of(path, labels), truth)  # type: ignore[arg-type]


def test_zero_may_mean_no_class() -> None:
    raw = Image.fromarray(torch.tensor([[0, 1, 2], [2, 1, 255]], dtype=torch.uint8).numpy())
    read = Labels(2, reduce_zero=True).read(raw, "x.png")
    assert read.tolist() == [[IGNORED, 0, 1], [1, 0, IGNORED]]
    with pytest.raises(DataError, match=r"x\.png: label 2 is beyond 1 classes"):
        Labels(1, reduce_zero=True).read(raw, "x.png")
    with pytest.raises(DataError, match="RGB"):
        Labels(2).read(raw.convert("RGB"), "x.png")


def test_data_that_is_none_is_refused(tmp_path: Path) -> None:
    labels = Labels(2, ignored=9)
    with pytest.raises(DataError, match="no such folder"):
        open_scenes(tmp_path / "no", "val", labels)
    with pytest.raises(DataError, match="annotations"):
        open_scenes(tmp_path, "val", labels)
    scenes(tmp_path / "ade" / "training", 1)
    for kind in ("images", "annotations"):
        (tmp_path / "ade" / kind).mkdir()
        (tmp_path / "ade" / "training" / kind).rename(tmp_path / "ade" / kind / "training")
    with pytest.raises(DataError, match="images/validation"):  # no other split in its place
        open_scenes(tmp_path / "ade", "validation", labels)
    scenes(tmp_path / "two" / "train", 1)
    scenes(tmp_path / "two" / "val", 1)
    with pytest.raises(DataError, match="images/test"):
        open_scenes(tmp_path / "two", "test", labels)
    with tarfile.open(tmp_path / "two.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "two", "./")
    with pytest.raises(DataError, match="several folders"):
        open_scenes(tmp_path / "two.tar.gz", "val", labels)
    whole = (tmp_path / "two.tar.gz").read_bytes()
    (tmp_path / "two.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="tar"):
        open_scenes(tmp_path / "two.tar.gz", "val", labels)
    (tmp_path / "b.tar").write_text("no tar")
    with pytest.raises(DataError, match="tar"):
        open_scenes(tmp_path / "b.tar", "val", labels)
    root = scenes(tmp_path / "s", 1)
    Image.new("L", (10, 10)).save(root / "annotations" / "0.png")
    with pytest.raises(DataError, match="10x10"):
        open_scenes(root, "val", labels)[0]
    (root / "annotations" / "0.png").write_text("no picture")
    with pytest.raises(DataError, match="cannot be read"):
        open_scenes(root, "val", labels)[0]


def test_an_image_without_annotation_is_told_of(tmp_path: Path) -> None:
    root = scenes(tmp_path / "s", 3)
    (root / "annotations" / "1.png").unlink()
    with pytest.warns(UserWarning, match=r"an image has no annotation, images/1\.png"):
        assert len(open_scenes(root, "val", Labels(2, ignored=9))) == 2


def test_what_cannot_be_counted_is_not_guessed(tmp_path: Path) -> None:
    root = scenes(tmp_path / "s", 1)
    wide = torch.zeros(44, 60, dtype=torch.int32)
    wide[0] = 65535
    Image.fromarray(wide.numpy().astype("uint16")).save(root / "annotations" / "0.png")
    with pytest.raises(DataError, match="--ignore-label 65535"):
        classes_in(open_scenes(root, "val", Labels(2**16)))
    assert classes_in(open_scenes(root, "val", Labels(2**16, ignored=65535))) == 1
    Image.new("L", (60, 44), 9).save(root / "annotations" / "0.png")
    with pytest.raises(DataError, match="no pixel has a class"):
        classes_in(open_scenes(root, "val", Labels(2, ignored=9)))


@pytest.mark.parametrize(
    "wrong",
    [{"scale": (0.5,)}, {"scale": (2.0, 0.5)}, {"scale": (float("nan"), 1)}, {"scale": (0, 1)},
     {"flip": 2}, {"jitter": -1}, {"std": (0, 0, 0)}, {"mean": (0.5, 0.5)}],
    ids=str,
)  # fmt: skip
def test_augmentations_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        Augment((32, 32), **{"mean": HALF[0], "std": HALF[1], **wrong})


@pytest.mark.parametrize("size", [(60, 44), (44, 60), (30, 90)])
def test_labels_move_with_their_pixels(size: tuple[int, int], tmp_path: Path) -> None:
    """Bright where class 1 is, dark where 0 is, at every size, place and side."""
    found = open_scenes(scenes(tmp_path / "s", 5, size), "val", Labels(2, ignored=9))
    torch.manual_seed(0)
    looks = [Window((32, 32), *HALF), Augment((32, 40), *HALF, jitter=0.1)]
    for look, number in itertools.product(looks, range(5)):
        found.transform = look
        image, labels = found[number]
        assert image.shape[1:] == labels.shape == look.window
        assert labels.dtype == torch.int64
        known = labels != IGNORED
        right = (image[0] > 0) == (labels == 1)
        assert right[known].float().mean() > 0.9
    assert (labels == IGNORED).any()
    found.transform = Look((32, 32), *HALF)
    image, labels = found[0]
    assert min(image.shape[1:]) == 32
    assert labels.shape == (size[1], size[0])


# Loss and score.


def test_pixels_without_a_class_count_for_nothing() -> None:
    said = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(3, (2, 4, 5))
    labels[0, 1:3] = IGNORED
    known = labels != IGNORED
    rows = said.permute(0, 2, 3, 1)[known]
    wanted = F.cross_entropy(rows, labels[known], label_smoothing=0.1)
    torch.testing.assert_close(cross_entropy(said, labels, 0.1), wanted)
    none = cross_entropy(said, torch.full_like(labels, IGNORED))
    none.backward()
    assert none == 0
    assert said.grad is not None
    assert bool((said.grad == 0).all())


class Fixed(Segmenter):
    """Says of a pixel what its red channel is."""

    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot(x[:, 0].round().long(), self.classes).permute(0, 3, 1, 2).float()


def fixed() -> Fixed:
    return Fixed(segmenter().encoder, 4, "linear")


def test_the_mean_iou_is_that_of_counting() -> None:
    torch.manual_seed(1)
    said = [torch.randint(3, (48, 48)) for _ in range(3)]
    truth = [torch.where(torch.rand(48, 48) < 0.7, x, (x + 1) % 3) for x in said]
    for labels in truth:
        labels[:5] = IGNORED
    images = [x[None].repeat(3, 1, 1).float() for x in said]
    report = score(fixed(), fixed(), zip(images, truth, strict=True))
    ours, real = torch.cat(said), torch.cat(truth)
    ious = []
    for c in range(3):
        a, b = (ours == c) & (real != IGNORED), real == c
        ious.append(((a & b).sum() / (a | b).sum()).item())
    assert report.miou == pytest.approx(sum(ious) / 3, abs=1e-6)  # class 3 never occurs
    assert report.ious[:3] == pytest.approx(ious, abs=1e-6)
    known = real != IGNORED
    assert report.accuracy == pytest.approx((ours == real)[known].float().mean().item())
    assert report.agreement == 1
    judge = MeanIoU(4)
    pairs = [(image[None], labels[None]) for image, labels in zip(images, truth, strict=True)]
    parts = [judge.count(fixed(), some, torch.device("cpu")) for some in (pairs[:1], pairs[1:])]
    assert judge.value(parts[0] + parts[1]) == pytest.approx(report.miou, abs=1e-6)
    assert report.ious[3] is None
    with pytest.raises(DataError, match="no images"):
        score(fixed(), fixed(), [])
    with pytest.raises(DataError, match="no pixel"):
        score(fixed(), fixed(), [(images[0], torch.full((48, 48), IGNORED))])
    with pytest.raises(UnsupportedModel, match="--task segment"):
        score(segmenter().encoder, fixed(), pairs)


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


def test_pixels_without_a_class_are_no_score() -> None:
    judge = MeanIoU(3)
    with pytest.raises(DataError, match="no pixel has a class"):
        judge.value(torch.zeros(3, 3))


# Commands.


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: vitfold_(monkeypatch, *map(str, arguments))


TINY = ["--model-kwargs", "depth=4 embed_dim=24 num_heads=3 patch_size=8", "--img-size", "32"]


def test_a_segmenter_from_training_to_pictures(run, capsys, tmp_path: Path) -> None:
    """As a user does it: train, train folded, validate, look, time."""
    scenes(tmp_path / "d" / "train", 8)
    scenes(tmp_path / "d" / "val", 3)
    data = ["--task", "segment", "--data-dir", tmp_path / "d", "--ignore-label", "9"]
    train = [*data, "--val-split", "val", "-b", "4", "--device", "cpu"]
    name, dense = "vit_tiny_patch16_224", tmp_path / "dense"
    given = ["--epochs", "12", "--lr", "3e-3", "--color-jitter", "0", "--scale", "0.8,1.2"]
    assert run("train", name, *TINY, *train, *given, "-o", dense) == 0
    assert "best mIoU" in capsys.readouterr().out
    log = (dense / "log.csv").read_text().splitlines()
    assert log[0].split(",")[4] == "miou"
    assert float(log[-1].split(",")[4]) > 0.6
    assert saved_classes(str(dense / "last")) == 2  # as many as there are in the annotations
    ltmp = ["--method", "ltmp", "--flops", "0.8", "--epochs", "2"]
    found = ["--method", "prune-merge", "--flops", "0.7", "--epochs", "1", "--distill", "soft"]
    found += ["--method-kwargs", "iterations=4"]
    for kind, method in (("ltmp", ltmp), ("found", found)):
        assert run("train", dense / "last", *train, *method, "-o", tmp_path / kind) == 0
        assert saved_classes(str(tmp_path / kind / "last")) == 2
    capsys.readouterr()
    models = {
        dense / "last": ["--method", "tome", "--flops", "0.8"],
        tmp_path / "ltmp" / "last": [],
        tmp_path / "found" / "last": [],
    }
    for model, method in models.items():
        assert run("validate", model, *data, "--split", "val", *method,
                   "--results-file", tmp_path / "r.json") == 0  # fmt: skip
        row = json.loads((tmp_path / "r.json").read_text())["rows"][0]
        assert row["images"] == 3
        assert row["agreement"] > 0.8
        assert {"miou", "dense_miou", "iou_0", "iou_1"} <= row.keys()
    shown = tmp_path / "shown"
    assert run("validate", dense / "last", *data, "--split", "val", "--stride", "16", "--limit", 2,
               "--flops", "0.8", "--pictures", "2", "-o", shown) == 0  # fmt: skip
    assert Image.open(shown / "scene-2.png").width > 5 * 200
    image = tmp_path / "d" / "val" / "images" / "1.png"
    assert run("trace", dense / "last", image, *data[:2], "--ignore-label", 9, "--flops", "0.8",
               "-o", shown) == 0  # fmt: skip
    assert {"1-tokens.png", "1-blocks.png", "1-classes.png"} <= {p.name for p in shown.iterdir()}
    bench = ["-b", "2", "--repeats", "1", "--warmup", "0"]
    assert run("bench", name, *TINY, "--task", "segment", "--flops", "0.8", *bench) == 0
    out = capsys.readouterr().out
    assert "free slicing" in out
    assert "textbook" not in out
    assert run("bench", tmp_path / "ltmp" / "last", *data[:4], "--split", "val", *bench) == 0
    assert run("bench", tmp_path / "found" / "last", "--task", "segment", *bench) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["validate", "vit_tiny_patch16_224", *TINY, "--no-pretrained"], "no segmenter"),
        (["validate", "vit_tiny_patch16_224", *TINY, "--no-pretrained", "--task", "dense"],
         "classify or segment"),
        (["train", "vit_tiny_patch16_224", *TINY, "--aa", "rand-m9"], "auto_augment"),
        (["train", "vit_tiny_patch16_224", *TINY, "--mixup", "0.8", "-b", "2"], "mixed"),
        (["train", "vit_tiny_patch16_224", *TINY, "--decoder", "fpn"], "mask"),
        (["train", "vit_tiny_patch16_224", *TINY, "--dataset", "hfds/x"], "--dataset"),
        (["train", "vit_tiny_patch16_224", *TINY, "--flops", "0.7", "-b", "2"], "--method"),
        (["train", "vit_tiny_patch16_224", *TINY, "--scale", "2,0.5", "-b", "2"], "scale=[2.0"),
        (["train", "vit_tiny_patch16_224", *TINY, "--crop-pct", "1.2", "-b", "2"], "crop_pct=1.2"),
        (["train", "vit_tiny_patch16_224", *TINY, "--train-split", "validation", "-b", "2"],
         "those of training"),
        (["train", "vit_tiny_patch16_224", *TINY, "--teacher", "digits", "-b", "2"], "--teacher"),
        (["train", "digits"], "cannot be an encoder"),
        (["train", "x" * 300], "unknown model"),
        (["train", "vit_tiny_patch16_224", *TINY, "--num-classes", "1"], "classes=1"),
        (["train", "vit_tiny_patch16_224", *TINY, "--num-classes", "2", "--ignore-label", "8",
          "-b", "2"],
         "label 9 is beyond 2 classes"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_says_so(run, capsys, tmp_path, arguments, says) -> None:
    scenes(tmp_path / "d" / "train", 4)
    scenes(tmp_path / "d" / "validation", 2)
    task = [] if "--task" in arguments else ["--task", "segment"]
    ignored = [] if "--ignore-label" in arguments else ["--ignore-label", "9"]
    output = ["-o", tmp_path / "out", "--device", "cpu"]
    assert run(*arguments, *task, *ignored, "--data-dir", tmp_path / "d", *output) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.strip().count("\n") == 0


def test_a_segmenter_is_no_classifier(run, capsys, tmp_path: Path) -> None:
    save_model(segmenter(), tmp_path / "m")
    scenes(tmp_path / "d", 2)
    assert run("validate", tmp_path / "m", "--data-dir", tmp_path / "d", "--r", "2") == 2
    assert "by --task segment" in capsys.readouterr().err
    for command in (["sweep"], ["search", "-o", tmp_path / "s"], ["analyze", "similarity"]):
        assert run(*command, tmp_path / "m", "--data-dir", tmp_path / "d") == 2
        assert "by --task segment" in capsys.readouterr().err


def test_a_segmenter_keeps_its_precision_and_says_what_it_cannot(tmp_path: Path) -> None:
    model, images = segmenter().bfloat16(), torch.randn(1, 3, 48, 48).bfloat16()
    save_model(model, tmp_path / "m")
    with torch.no_grad():
        assert torch.equal(create_model(str(tmp_path / "m")).eval()(images), model(images))
    odd = Segmenter(create_model("digits"), 3)
    with pytest.raises(PlanError, match="cannot be made by name"):
        save_model(odd, tmp_path / "odd")


def test_scenes_are_read_by_many_processes(tmp_path: Path) -> None:
    scenes(tmp_path / "s", 6)
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        tar.add(tmp_path / "s", "./")
    found: Scenes = open_scenes(tmp_path, "val", Labels(2, ignored=9))
    found[0]  # a handle of this process, which others must not share
    loader = torch.utils.data.DataLoader(found, batch_size=None, num_workers=2)
    for (image, labels), (wanted, known) in zip(loader, found, strict=True):
        assert torch.equal(image, wanted)
        assert torch.equal(labels, known)


@pytest.mark.parametrize("made", ["val", "validation"])
def test_splits_go_by_the_names_that_others_have(tmp_path: Path, made: str) -> None:
    scenes(tmp_path / made)
    for name in ("val", "validation", "eval"):
        assert len(open_scenes(tmp_path, name, Labels(2, 9))) == 5
    with pytest.raises(DataError, match=f"and the split; it has {made}"):
        open_scenes(tmp_path, "test", Labels(2, 9))


def test_classes_are_those_of_both_splits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A class that only the held-out images have does not end a training after an epoch."""
    scenes(tmp_path / "train", 4)
    scenes(tmp_path / "val", 4)
    picture = tmp_path / "val" / "annotations" / "0.png"
    to_pil_image(torch.full((1, 44, 60), 3, dtype=torch.uint8)).save(picture)
    given = ["--task", "segment", "--data-dir", tmp_path, "--ignore-label", 9, "--epochs", 1]
    small = ["--model-kwargs", "depth=1 embed_dim=48 num_heads=3", "--img-size", 32, "-b", 2]
    asked = ["train", "vit_tiny_patch16_224", *small, *given, "--output", tmp_path / "out"]
    assert vitfold_(monkeypatch, *map(str, asked)) == 0
    assert saved_classes(str(tmp_path / "out" / "last")) == 4


def test_segmenters_are_frozen_and_searched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for split in ("train", "val"):
        scenes(tmp_path / split, 4)
    where = ["--task", "segment", "--data-dir", tmp_path, "--ignore-label", 9]
    dense, learned = tmp_path / "dense", tmp_path / "learned"
    save_model(segmenter(), dense)
    save_model(vitfold.fold(segmenter(), vitfold.LTMP(merge_threshold=0.3)), learned)
    asked = ["freeze", learned, *where, "--output", tmp_path / "fixed"]
    assert vitfold_(monkeypatch, *map(str, asked)) == 0
    assert "mIoU" in capsys.readouterr().out
    assert fold_of(create_model(tmp_path / "fixed")).method.name == "mergedrop"
    asked = ["search", dense, *where, "--iterations", 2, "-b", 2, "--output", tmp_path / "found"]
    assert vitfold_(monkeypatch, *map(str, asked)) == 0
    method = fold_of(create_model(tmp_path / "found")).method
    assert isinstance(method, vitfold.PruneMerge)
    loader = [(torch.rand(2, 3, 48, 48), torch.randint(0, 2, (2, 48, 48)))] * 2
    assert vitfold.PruneMerge.search(segmenter(), loader, iterations=2).grid == method.grid
    assert vitfold_(monkeypatch, "freeze", str(learned), "-o", str(tmp_path / "no")) == 2
    assert "search and freeze take it, by --task segment" in capsys.readouterr().err
