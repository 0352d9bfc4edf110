"""A corpus embedded: every image a row or a failure, and the numbers those of the model."""

import io
import json
import multiprocessing
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support import corpora, models
from support.cli import vitfold_
from support.saving import tiny

import vitfold
from vitfold.data import preprocessing
from vitfold.errors import DataError, UnsupportedModel
from vitfold.serve import pool
from vitfold.serve.decoding import Decoder, Preparation
from vitfold.serve.embedder import preparation_of
from vitfold.serve.entries import Entry
from vitfold.tools.looks import look

SMALL: dict[str, Any] = {"shard_size": 4, "batch_size": 2, "workers": 0}


def embeddings(directory: Path) -> Any:
    return np.array([row["embedding"] for row in corpora.rows(directory)])


def test_rows_are_what_the_model_gives(tmp_path: Path) -> None:
    model = corpora.model()
    corpora.folder(tmp_path / "in", 10)
    result = vitfold.embed(model, tmp_path / "in", tmp_path / "out", **SMALL)
    assert (result.images, result.rows, result.failed) == (10, 10, 0)
    prepare, rows = preprocessing(model), corpora.rows(tmp_path / "out")
    assert len({row["id"] for row in rows}) == 10
    pairs = [rows[n : n + 2] for n in (0, 2, 4, 6, 8)]
    for pair in pairs:
        pictures = [Image.open(tmp_path / "in" / row["id"]) for row in pair]
        assert [row["path"] for row in pair] == [picture.filename for picture in pictures]
        assert [(row["width"], row["height"]) for row in pair] == [(40, 30)] * 2
        images = torch.stack([prepare(picture.convert("RGB")) for picture in pictures])
        with torch.no_grad():
            seen = look(model, images).embedding
        assert torch.equal(torch.tensor([row["embedding"] for row in pair]), seen)


def test_processes_give_the_same_bits(tmp_path: Path) -> None:
    model = corpora.model()
    corpora.folder(tmp_path / "in", 11)
    (tmp_path / "in" / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    for name, workers in ("a", 0), ("b", 2):
        vitfold.embed(
            model, tmp_path / "in", tmp_path / name, shard_size=4, batch_size=3, workers=workers
        )
    assert corpora.contents(tmp_path / "a") == corpora.contents(tmp_path / "b")
    assert corpora.failures(tmp_path / "b").keys() == {"bad.jpg"}


def test_what_is_beside_an_image_in_its_batch_changes_nothing(tmp_path: Path) -> None:
    """Also where that cannot be read."""
    model = corpora.model()
    corpora.folder(tmp_path / "in", 4)
    vitfold.embed(model, tmp_path / "in", tmp_path / "a", batch_size=4, workers=0)
    (tmp_path / "in" / "class0" / "03.jpg").write_bytes(b"nothing")
    vitfold.embed(model, tmp_path / "in", tmp_path / "b", batch_size=4, workers=0)
    first, second = (
        {row["id"]: row["embedding"] for row in corpora.rows(tmp_path / name)} for name in "ab"
    )
    del first["class0/03.jpg"]
    assert first == second


def test_the_manifest_says_what_there_is(tmp_path: Path) -> None:
    corpora.folder(tmp_path / "in", 9)
    for name in ("a.jpg", "b.png"):
        (tmp_path / "in" / name).write_bytes(b"no picture")
    (tmp_path / "in" / "readme.md").write_text("x")
    result = vitfold.embed(corpora.model(), tmp_path / "in", tmp_path / "out", **SMALL)
    content = corpora.manifest(tmp_path / "out")
    assert content == json.loads(json.dumps(result.manifest))
    assert content["counts"] == {"in": 11, "out": 9, "failed": 2}
    assert content["skipped"] == {".md": 1}
    assert content["fold"]["words"] == "ToMe(r=2)"
    assert content["model"]["name"] == "test_vit.r160_in1k"
    assert {"vitfold", "torch", "timm", "pillow"} <= content["versions"].keys()
    assert sum(shard["rows"] for shard in content["shards"]) == 9
    import hashlib

    for shard in content["shards"]:
        data = (tmp_path / "out" / shard["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
        assert len(data) == shard["bytes"]
    assert "it is no picture" in corpora.failures(tmp_path / "out")["a.jpg"]


def test_a_model_that_cannot_be_copied(tmp_path: Path) -> None:
    corpora.folder(tmp_path / "in", 3)
    model = vitfold.unfold(corpora.model())
    model.lock = threading.Lock()
    assert vitfold.embed(model, tmp_path / "in", tmp_path / "dense", **SMALL).rows == 3
    vitfold.fold(model, vitfold.ToMe(r=1))
    with pytest.raises(UnsupportedModel, match="cannot be copied"):
        vitfold.embed(model, tmp_path / "in", tmp_path / "folded", **SMALL)
    assert not (tmp_path / "folded").exists()


def test_half_precision_and_dense_features(tmp_path: Path) -> None:
    model = corpora.model()
    corpora.folder(tmp_path / "in", 3)
    result = vitfold.embed(
        model, tmp_path / "in", tmp_path / "out", dtype="float16", tokens=True, **SMALL
    )
    schema = pq.read_schema(result.files[0])
    assert str(schema.field("embedding").type) == "fixed_size_list<element: halffloat>[32]"
    tokens, channels = result.manifest["shapes"]["tokens"]
    assert schema.field("tokens").type.list_size == tokens * channels
    rows = corpora.rows(tmp_path / "out")
    picture = Image.open(tmp_path / "in" / rows[0]["id"])
    with torch.no_grad():
        features = model.forward_features(preprocessing(model)(picture)[None])[0]
    ours = torch.tensor(np.array(rows[0]["tokens"], np.float32)).reshape(tokens, channels)
    torch.testing.assert_close(ours, features, atol=2e-3, rtol=2e-3)


def test_a_model_that_gives_maps_alone(tmp_path: Path) -> None:
    corpora.folder(tmp_path / "in", 2)
    model = tiny(num_classes=0, global_pool="")
    with pytest.raises(DataError, match="give --tokens"):
        vitfold.embed(model, tmp_path / "in", tmp_path / "a", **SMALL)
    vitfold.embed(model, tmp_path / "in", tmp_path / "b", tokens=True, **SMALL)
    assert corpora.rows(tmp_path / "b")[0].keys() == {"id", "path", "tokens", "width", "height"}


def test_models_that_read_text_too(tmp_path: Path) -> None:
    """The projected embedding of the image side, folded or not."""
    corpora.folder(tmp_path / "in", 2)
    model = models.hf("CLIPModel")
    vitfold.fold(model.vision_model, vitfold.ToMe(r=2))
    vitfold.embed(model, tmp_path / "in", tmp_path / "out", **SMALL)
    prepare = preprocessing(model.vision_model)
    rows = corpora.rows(tmp_path / "out")
    images = torch.stack([prepare(Image.open(tmp_path / "in" / row["id"])) for row in rows])
    with torch.no_grad():
        features = model.get_image_features(images).pooler_output
    ours = torch.tensor(embeddings(tmp_path / "out"), dtype=torch.float32)
    torch.testing.assert_close(ours, features)
    assert features.shape == (2, 8)


def test_images_are_prepared_as_a_checkpoint_says(tmp_path: Path) -> None:
    """Also of a model that transformers has opened by itself."""
    import transformers

    models.hf("CLIPModel").save_pretrained(tmp_path / "clip")
    processor = {"image_processor_type": "CLIPImageProcessor", "image_mean": [0.1, 0.2, 0.3]}
    processor |= {"size": {"shortest_edge": 20}, "crop_size": {"height": 20, "width": 20}}
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(processor))
    corpora.folder(tmp_path / "in", 2)
    auto = transformers.AutoModel.from_pretrained(tmp_path / "clip")
    assert type(auto).__name__ == "CLIPModel"
    result = vitfold.embed(auto, tmp_path / "in", tmp_path / "out", **SMALL)
    assert result.manifest["preparation"]["mean"] == [0.1, 0.2, 0.3]
    images = torch.stack(
        [preprocessing(auto)(Image.open(row["path"])) for row in corpora.rows(tmp_path / "out")]
    )
    with torch.no_grad():
        features = auto.get_image_features(images).pooler_output
    np.testing.assert_allclose(embeddings(tmp_path / "out"), features, atol=1e-5)


def test_open_clip_as_its_own_transform_has_it(tmp_path: Path) -> None:
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms("ViT-S-32-alt", pretrained=None)
    vitfold.fold(model.eval(), vitfold.ToMe(r=4))
    corpora.folder(tmp_path / "in", 2)
    vitfold.embed(model, tmp_path / "in", tmp_path / "out", **SMALL)
    rows = corpora.rows(tmp_path / "out")
    images = torch.stack([transform(Image.open(row["path"])) for row in rows])
    with torch.no_grad():
        features = model.encode_image(images)
    assert torch.equal(torch.tensor(embeddings(tmp_path / "out")).float(), features)


def test_any_model_of_timm(tmp_path: Path) -> None:
    import timm

    corpora.folder(tmp_path / "in", 2)
    model = timm.create_model("test_resnet", num_classes=0).eval()
    result = vitfold.embed(model, tmp_path / "in", tmp_path / "out", **SMALL)
    assert result.rows == 2
    assert result.manifest["fold"] is None


@pytest.mark.exhaustive
def test_another_runtime(tmp_path: Path) -> None:
    corpora.folder(tmp_path / "in", 5)
    model = corpora.model(num_classes=0)
    for runtime in ("eager", "onnxruntime"):
        vitfold.embed(model, tmp_path / "in", tmp_path / runtime, runtime=runtime, **SMALL)
    with pytest.raises(DataError, match="shows its logits alone"):
        vitfold.embed(
            corpora.model(), tmp_path / "in", tmp_path / "x", runtime="onnxruntime", **SMALL
        )
    eager, other = (embeddings(tmp_path / name) for name in ("eager", "onnxruntime"))
    np.testing.assert_allclose(eager, other, atol=1e-4)


def test_the_certificate_is_that_of_fidelity(tmp_path: Path) -> None:
    corpora.folder(tmp_path / "in", 12)
    (tmp_path / "in" / "bad.jpg").write_bytes(b"x")
    options = SMALL | {"batch_size": 8}
    result = vitfold.embed(
        corpora.model(), tmp_path / "in", tmp_path / "out", certificate=50, **options
    )
    figures = result.manifest["certificate"]
    assert (figures["asked"], figures["images"]) == (50, 12)
    vitfold.embed(tiny(), tmp_path / "in", tmp_path / "dense", **options)
    ours, dense = (torch.tensor(embeddings(tmp_path / name)) for name in ("out", "dense"))
    cosine = torch.nn.functional.cosine_similarity(ours.double(), dense.double()).mean()
    assert figures["cosine"] == pytest.approx(float(cosine), abs=1e-6)
    assert 0 <= figures["recall10"] <= 1
    with pytest.raises(DataError, match="this is dense"):
        vitfold.embed(tiny(), tmp_path / "in", tmp_path / "dense", certificate=5, **options)
    again = vitfold.embed(corpora.model(), tmp_path / "in", tmp_path / "out", **options)
    assert again.manifest["certificate"] == figures


def test_too_many_failures_stop_it_and_are_named(tmp_path: Path) -> None:
    corpora.folder(tmp_path / "in", 3)
    for number in range(4):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="4 of 4 images so far cannot be read, more than"):
        vitfold.embed(corpora.model(), tmp_path / "in", tmp_path / "out", max_failures=2, **SMALL)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert len(corpora.failures(tmp_path / "out")) == 4
    result = vitfold.embed(
        corpora.model(), tmp_path / "in", tmp_path / "out", max_failures=4, **SMALL
    )
    assert (result.rows, result.failed) == (3, 4)


def test_an_embedding_that_is_no_number_is_a_failure(tmp_path: Path) -> None:
    corpora.folder(tmp_path / "in", 3)
    model = tiny()
    with torch.no_grad():
        model.norm.weight.fill_(1e9)
    result = vitfold.embed(model, tmp_path / "in", tmp_path / "out", dtype="float16", **SMALL)
    assert (result.rows, result.failed) == (0, 3)
    assert "NaN or infinity" in corpora.failures(tmp_path / "out")["class0/00.jpg"]


def decoded(data: bytes, tmp_path: Path) -> tuple[Any, tuple[int, int], str | None]:
    """Pixels of a picture in a grid of 4 by 4, its size, and why there are none."""
    (tmp_path / "x").write_bytes(data)
    config = {"input_size": (3, 4, 4), "mean": (0,) * 3, "std": (1,) * 3, "crop_pct": 1.0}
    config |= {"crop_mode": "squash", "interpolation": "nearest"}
    result = Decoder(Preparation(config))([Entry("x", "x", os.fsencode(tmp_path / "x"))])
    return result.pixels[0], tuple(result.sizes[0]), result.reasons[0]


def test_sixteen_bits_become_the_upper_eight(tmp_path: Path) -> None:
    values = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4096
    for kind in ("PNG", "TIFF", "PPM"):
        out = io.BytesIO()
        Image.fromarray(values).save(out, kind)
        pixels, _, reason = decoded(out.getvalue(), tmp_path)
        assert reason is None
        assert (pixels == values >> 8).all()


def test_pictures_are_turned_as_their_camera_says(tmp_path: Path) -> None:
    picture = Image.new("L", (8, 4))
    picture.paste(255, (0, 0, 4, 4))  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # the left is the top
    out = io.BytesIO()
    picture.save(out, "PNG", exif=exif)
    pixels, size, _ = decoded(out.getvalue(), tmp_path)
    assert size == (4, 8)
    assert (pixels[:, :2] == 255).all()
    assert (pixels[:, 2:] == 0).all()


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    pixels, _, _ = decoded(out.getvalue(), tmp_path)
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]


def test_mutated_files_are_all_accounted_for(tmp_path: Path) -> None:
    accounted(tmp_path, 60)


@pytest.mark.exhaustive
def test_two_thousand_mutated_files_are_all_accounted_for(tmp_path: Path) -> None:
    accounted(tmp_path, 2000)


def accounted(tmp_path: Path, count: int, **options: Any) -> None:
    corpora.mutated(tmp_path / "in", count)
    result = vitfold.embed(
        corpora.model(), tmp_path / "in", tmp_path / "out", shard_size=100, workers=1, **options
    )
    names = {file.name for file in (tmp_path / "in").iterdir()}
    rows = [row["id"] for row in corpora.rows(tmp_path / "out")]
    failures = corpora.failures(tmp_path / "out")
    skipped = sum(result.manifest["skipped"].values())
    assert skipped == 0
    assert len(rows) == len(set(rows))
    assert set(rows) | failures.keys() == names
    assert not set(rows) & failures.keys()
    well = {name for name in names if name.split("-")[1].split(".")[0] in corpora.WELL}
    assert not {name: failures[name] for name in well & failures.keys()}
    assert not {name for name in rows if "bomb" in name}
    assert all(failures.values())


def test_a_process_that_is_killed_takes_no_image_with_it(tmp_path: Path) -> None:
    model = corpora.model()
    corpora.folder(tmp_path / "in", 12)
    vitfold.embed(model, tmp_path / "in", tmp_path / "a", **SMALL)
    killed = []

    def kill(now: Any) -> None:
        if now.done in (2, 6, 8):
            one, *_ = multiprocessing.active_children()
            killed.append(one.pid)
            one.kill()

    options = SMALL | {"workers": 2}
    result = vitfold.embed(model, tmp_path / "in", tmp_path / "b", tell=kill, **options)
    assert len(killed) == 3
    assert result.failed == 0
    assert corpora.contents(tmp_path / "a") == corpora.contents(tmp_path / "b")


class Deadly(Decoder):
    """It ends the process that reads a certain image, or never comes back."""

    def one(self, entry: Entry) -> Any:
        if "02" in entry.id:
            os.kill(os.getpid(), signal.SIGKILL)
        if "05" in entry.id:
            threading.Event().wait()
        return super().one(entry)


def test_an_image_that_kills_its_process_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = read_by_deadly(tmp_path, monkeypatch, 5)
    assert [number for number, reason in enumerate(reasons) if reason] == [2]
    assert str(reasons[2]).startswith("02.jpg cannot be read: the process that read it was killed")


@pytest.mark.exhaustive
def test_an_image_that_holds_its_process_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = read_by_deadly(tmp_path, monkeypatch, 8)
    assert [number for number, reason in enumerate(reasons) if reason] == [2, 5]


def read_by_deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> list[str | None]:
    """What is wrong with pictures, of which the third kills who reads it, and the sixth holds."""
    monkeypatch.setattr(pool, "Decoder", Deadly)
    corpora.folder(tmp_path, count)
    files = [tmp_path / f"class{n % 3}" / f"{n:02d}.jpg" for n in range(count)]
    entries = [Entry(file.name, file.name, os.fsencode(file)) for file in files]
    own = pool.Pool(preparation_of(corpora.model()), 2, patience=30)
    batches = list(own.stream([entries[:4], entries[4:]]))
    end = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.01)
    assert not multiprocessing.active_children()
    return [reason for batch in batches for reason in batch.reasons]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    corpora.folder(tmp_path / "in", 5)
    (tmp_path / "in" / "bad.jpg").write_bytes(b"x")
    out = tmp_path / "out"
    command = ("embed", "digits", tmp_path / "in", "-o", out, "-j", 1)
    assert vitfold_(monkeypatch, *command, "--r", 4, "--certificate", 5, "--amp") == 0
    shown = capfd.readouterr()
    assert re.search(r"│ in +│ +6 │", shown.out)
    assert "recall@1" in shown.out
    assert "1 images cannot be read" in shown.err
    assert corpora.manifest(out)["settings"]["amp"] == "bfloat16"
    assert len(corpora.rows(out)) == 5
    assert vitfold_(monkeypatch, *command) == 2
    assert "has embeddings of the fold ToMe(r=4), and this is dense" in capfd.readouterr().err
    assert vitfold_(monkeypatch, *command[:4], tmp_path / "b", "--max-failures", 0) == 2
    assert "more than --max-failures 0" in capfd.readouterr().err
    assert vitfold_(monkeypatch, *command, "--address", "x") == 2
    assert "--address x is of Ray" in capfd.readouterr().err


def test_a_model_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpora.folder(tmp_path / "in", 2)
    code = "import timm\ndef build():\n    return timm.create_model('test_vit', img_size=64)\n"
    (tmp_path / "mine.py").write_text(code)
    command = ("embed", f"{tmp_path}/mine.py:build", tmp_path / "in", "-o", tmp_path / "out")
    assert vitfold_(monkeypatch, *command, "-j", 0) == 0
    assert corpora.manifest(tmp_path / "out")["model"]["name"] == f"{tmp_path}/mine.py:build"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "rey"}, "did you mean 'ray'"),
        ({"dtype": "int8"}, "expected float32 or float16"),
        ({"runtime": "tensorrt"}, "unknown runtime"),
        ({"workers": -1}, "workers=-1"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, options: Any, words: str) -> None:
    corpora.folder(tmp_path / "in", 1)
    with pytest.raises(vitfold.VitfoldError, match=words):
        vitfold.embed(corpora.model(), tmp_path / "in", tmp_path / "out", **options)
