"""Fidelity against a plain float64 reference, for every kind of output."""

import math
from typing import Any

import pytest
import timm
import torch
from support.small import images, vit
from torch import Tensor, nn

import vitfold
from vitfold.errors import DataError
from vitfold.tools.intervals import Estimate
from vitfold.tools.looks import look

NUMBER = 24
ENDS = ("", "_low", "_high")


def folded(**options: Any) -> nn.Module:
    return vitfold.fold(vit(depth=4, **options).double(), vitfold.ToMe(r=6))


def reference_cosine(a: Tensor, b: Tensor) -> list[float]:
    return [float(x @ y / (x.norm() * y.norm())) for x, y in zip(a, b, strict=True)]


def reference_recall(ours: Tensor, dense: Tensor, k: int) -> float:
    shares = []
    for i in range(len(ours)):
        near = []
        for rows in (ours, dense):
            scores = reference_cosine(rows[i].expand_as(rows), rows)
            others = [j for j in range(len(rows)) if j != i]
            near.append(set(sorted(others, key=lambda j: -scores[j])[:k]))
        shares.append(len(near[0] & near[1]) / k)
    return sum(shares) / len(shares)


@torch.no_grad()
def test_of_a_classifier() -> None:
    model = folded(num_classes=5)
    x = images(model, NUMBER)
    report = vitfold.fidelity(model, x, batch_size=7)
    ours = model.forward_head(model.forward_features(x), pre_logits=True), model(x)
    vitfold.unfold(model)
    dense = model.forward_head(model.forward_features(x), pre_logits=True), model(x)
    cosines = reference_cosine(ours[0], dense[0])
    assert report.images == NUMBER
    assert report.cosine is not None
    assert report.cosine.mean == pytest.approx(sum(cosines) / NUMBER, abs=1e-6)
    assert report.cosine_worst == pytest.approx(sum(sorted(cosines)[:3]) / 3, abs=1e-6)
    for k, recall in ((1, report.recall1), (10, report.recall10)):
        assert recall is not None
        assert recall.mean == pytest.approx(reference_recall(ours[0], dense[0], k), abs=1e-9)
    p, q = (logits.softmax(dim=1) for logits in (dense[1], ours[1]))
    assert report.kl is not None
    assert report.kl.mean == pytest.approx(float((p * (p / q).log()).sum(1).mean()), abs=1e-9)
    agrees = int((p.argmax(1) == q.argmax(1)).sum())
    assert report.agreement is not None
    assert report.agreement.mean == agrees / NUMBER
    assert report.dense_cosine is None


def test_batches_make_no_difference_and_labels_are_left_out() -> None:
    model = folded(num_classes=5)
    x = images(model, NUMBER)
    batches = [(part, torch.zeros(len(part))) for part in x.split(5)]
    calls: list[int] = []
    whole = vitfold.fidelity(model, x).to_json()
    parts = vitfold.fidelity(model, batches, progress=lambda: calls.append(1)).to_json()
    assert parts == pytest.approx(whole, abs=1e-9)
    assert len(calls) == len(batches)


def test_a_model_is_true_to_itself() -> None:
    model = vitfold.fold(vit(depth=4, num_classes=5).double(), vitfold.ToMe(r=0))
    report = vitfold.fidelity(model, images(model, NUMBER))
    for exact in (report.cosine, report.recall1, report.recall10, report.agreement):
        assert exact is not None
        assert exact.mean == pytest.approx(1)
        assert exact.low <= exact.mean <= exact.high <= 1
    assert report.kl is not None
    assert report.kl.mean == pytest.approx(0, abs=1e-12)


def test_of_embeddings_there_are_no_classes() -> None:
    model = folded(num_classes=0)
    report = vitfold.fidelity(model, images(model, NUMBER))
    assert report.cosine is not None
    assert (report.kl, report.agreement, report.dense_cosine) == (None, None, None)
    shares = [f"{name}{end}" for name in ("cosine", "recall1", "recall10") for end in ENDS]
    assert set(report.to_json()) == {"images", "cosine_worst", *shares}


def test_of_dense_features() -> None:
    backbone = timm.create_model("test_vit", features_only=True).eval()
    model = vitfold.fold(backbone, vitfold.ToMe(r=20))
    x = torch.randn(4, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    report = vitfold.fidelity(model, x)
    with torch.no_grad():
        ours = model(x)[-1]
        dense = vitfold.unfold(model)(x)[-1]
    places = nn.functional.cosine_similarity(ours, dense, dim=1).mean()
    assert report.dense_cosine is not None
    assert report.dense_cosine.mean == pytest.approx(float(places), abs=1e-5)
    assert report.cosine is None


def test_of_transformers_models() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
             "intermediate_size": 64, "image_size": 32, "patch_size": 8}  # fmt: skip
    x = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    clip = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**sizes))
    of_clip = vitfold.fidelity(vitfold.fold(clip.eval(), vitfold.ToMe(r=3)), x)
    assert of_clip.cosine is not None
    assert of_clip.dense_cosine is not None
    assert of_clip.kl is None
    with torch.no_grad():
        assert torch.equal(look(clip, x).embedding, clip(x).image_embeds)
    classifier = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes))
    of_vit = vitfold.fidelity(vitfold.fold(classifier.eval(), vitfold.ToMe(r=3)), x)
    assert of_vit.cosine is not None
    assert of_vit.kl is not None
    assert look(classifier, x).embedding.shape == (12, 32)


def test_of_a_segmenter_places_count() -> None:
    from vitfold.segment import Segmenter

    encoder = timm.create_model("test_vit", num_classes=0)
    model = vitfold.fold(Segmenter(encoder, 3, "linear").eval(), vitfold.ToMe(r=30))
    x = torch.randn(3, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    report = vitfold.fidelity(model, x)
    assert report.agreement is not None
    assert 0 < report.agreement.mean < 1
    assert report.kl is not None
    assert report.cosine is None


def test_one_image_says_nothing_of_others() -> None:
    model = folded(num_classes=5)
    report = vitfold.fidelity(model, images(model, 1))
    assert report.cosine is not None
    assert report.cosine[1:] == (-1, 1)
    assert report.kl is not None
    assert report.kl[1:] == (0, math.inf)
    assert (report.recall1, report.recall10) == (None, None)


def test_the_dense_model_may_be_another() -> None:
    model = folded(num_classes=5)
    x = images(model, NUMBER)
    report = vitfold.fidelity(model, x, dense=model)
    assert report.agreement == Estimate(1.0, *report.agreement[1:])


def test_what_cannot_be_compared_is_refused_in_a_line() -> None:
    model = folded(num_classes=5)
    with pytest.raises(DataError, match="no images: fidelity needs some"):
        vitfold.fidelity(model, images(model, 4)[:0])
    with torch.no_grad():
        model.head.weight.fill_(math.nan)
    with pytest.raises(DataError, match="gives NaN for an image"):
        vitfold.fidelity(model, images(model, 4))
