"""PruneMerge.search: scores against attention times its gradient."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.matrices import batches
from support.small import MODELS, images, vit
from torch import Tensor

import vitfold
from vitfold import DataError, MethodError, PruneMerge
from vitfold.folding.calls import fold_of
from vitfold.folding.families.hf import MODELS as FAMILIES
from vitfold.methods.prune_merge.structure import GROUPINGS
from vitfold.tools.prune_merge.scores import Scores

HUGGING_FACE = [name for names in FAMILIES.values() for name in names]


def materialized(model: Any, block: int, x: Tensor, labels: Tensor) -> Tensor:
    """`[N]`: `|sum A dL/dA|` of one batch, with the attention as a matrix."""
    attention, kept = model.blocks[block].attn, []

    def forward(x: Tensor, **_: Any) -> Tensor:
        b, n, c = x.shape
        heads = attention.num_heads
        q, k, v = attention.qkv(x).reshape(b, n, 3, heads, -1).permute(2, 0, 3, 1, 4)
        q, k = attention.q_norm(q), attention.k_norm(k)
        weights = (q @ k.transpose(-1, -2) * attention.scale).softmax(dim=-1)
        weights.retain_grad()
        kept.append(weights)
        out: Tensor = attention.proj((weights @ v).transpose(1, 2).reshape(b, n, c))
        return out

    attention.forward = forward
    F.cross_entropy(model(x), labels).backward()
    del attention.forward
    (weights,) = kept
    total = (weights * weights.grad).sum(dim=(0, 1, 2)).abs()
    return total.detach() / math.prod(weights.shape[:3])


class TestSearch:
    @pytest.mark.parametrize("name", ["vit", "dino"])
    def test_scores_are_attention_times_its_gradient(self, name: str) -> None:
        model: Any = MODELS[name]().double()
        inputs = batches(model)
        result = PruneMerge.search(model, inputs, blocks=[1, 3], iterations=5)
        assert all(values.grad is None for values in model.parameters())
        start = model.num_prefix_tokens
        assert result.scores is not None
        for block, row in zip((1, 3), result.scores, strict=True):
            visits = [materialized(model, block, *inputs[i % 3])[start:] for i in range(5)]
            expected = torch.stack(visits).mean(dim=0)
            got = torch.tensor(row, dtype=torch.float64)
            torch.testing.assert_close(got, expected, rtol=2e-3, atol=1e-12)

    @pytest.mark.parametrize("share", [0.9, 0.75, 0.6])
    def test_share_of_the_flops(self, share: float) -> None:
        model = vit(depth=6)
        result = PruneMerge.search(model, batches(model), flops=share, iterations=2)
        x = images(model, dtype=torch.float32)
        dense = vitfold.flops(model, x[:1])
        reached = vitfold.flops(vitfold.fold(model, result), x[:1]) / dense
        assert reached == pytest.approx(share, abs=0.01)

    @pytest.mark.parametrize("grouping", GROUPINGS)
    @pytest.mark.parametrize("share", [0.7, 0.6, 0.4])
    def test_share_of_the_flops_of_few_patches(self, share: float, grouping: str) -> None:
        """One patch more or less that stays alone is more than the share may be missed by."""
        model = vit((4, 4))
        inputs = batches(model)
        result = PruneMerge.search(model, inputs, flops=share, grouping=grouping, iterations=1)
        one = inputs[0][0][:1]
        dense = vitfold.flops(model, one)
        reached = vitfold.flops(vitfold.fold(model, result), one) / dense
        assert reached == pytest.approx(share, abs=0.01)

    def test_more_goes_around_only_where_nobody_said_how_much(self) -> None:
        model = vit((4, 4))
        request = {"flops": 0.4, "grouping": "centers", "iterations": 1}
        assert PruneMerge.search(model, batches(model), **request).prune > 0.1
        for prune in (0.05, 0.1):
            with pytest.raises(MethodError, match="the nearest share that can is"):
                PruneMerge.search(model, batches(model), prune=prune, **request)
        with pytest.raises(MethodError):
            PruneMerge.search(model, batches(model), keep=0.95, prune=0.1)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
    def test_rates_are_found_in_the_type_of_the_model(self, dtype: torch.dtype) -> None:
        model, inputs = vit(patch_drop_rate=0.25).train(), batches(vit())
        model.to(dtype)
        result = PruneMerge.search(model, inputs, flops=0.6, iterations=1)
        one = inputs[0][0][:1].to(dtype)
        model.eval()
        dense = vitfold.flops(model, one)
        reached = vitfold.flops(vitfold.fold(model, result), one) / dense
        assert reached == pytest.approx(0.6, abs=0.01)

    def test_labels_of_other_types_and_shapes(self) -> None:
        model = vit()
        images, labels = batches(model)[0]
        expected = PruneMerge.search(model, [(images, labels)], iterations=1)
        assert PruneMerge.search(model, [(images, labels.int())], iterations=1) == expected
        with pytest.raises(DataError, match=r"labels \[4, 1\]: expected \[B\]"):
            PruneMerge.search(model, [(images, labels[:, None])], iterations=1)
        with pytest.raises(DataError, match="without images"):
            PruneMerge.search(model, [(images[:0], labels[:0])], iterations=1)
        with pytest.raises(DataError, match="no gradient reaches any patch"):
            PruneMerge.search(model, [(images, torch.full_like(labels, -100))], iterations=1)
        with pytest.raises(MethodError, match=r"keep='0\.5'"):
            PruneMerge.search(model, [(images, labels)], keep="0.5", iterations=1)  # type: ignore[arg-type]

    def test_the_same_images_give_the_same_method(self) -> None:
        model = vit().train()
        before = copy.deepcopy(model.state_dict())
        ways = [PruneMerge.search(model, batches(model)) for _ in range(2)]
        assert ways[0] == ways[1]
        assert ways[0].blocks == (1, 2, 3)
        assert model.training
        assert all(map(torch.equal, before.values(), model.state_dict().values()))

    def test_a_folded_model_is_scored_as_it_is_without(self) -> None:
        model = vit()
        plain = PruneMerge.search(model, batches(model))
        assert PruneMerge.search(vitfold.fold(model, "tome", r=5), batches(model)) == plain
        assert isinstance(fold_of(model).method, vitfold.ToMe)

    def test_a_search_that_was_stopped_goes_on(self, tmp_path: Path) -> None:
        model, file = vit(), tmp_path / "scores.safetensors"
        inputs = batches(model, number=25)
        whole = PruneMerge.search(model, inputs, iterations=25)

        def failing() -> Any:
            yield from inputs[:13]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            PruneMerge.search(model, failing(), iterations=25, resume=file)
        assert Scores.start(model, (1, 2, 3), (7, 7), inputs[0], 25, file).batches == 10
        again = PruneMerge.search(model, inputs, iterations=25, resume=file)
        assert again == whole
        with pytest.raises(DataError, match="25 batches, more than iterations=10"):
            PruneMerge.search(model, inputs, iterations=10, resume=file)
        with pytest.raises(DataError, match="another blocks"):
            PruneMerge.search(model, inputs, blocks=[0], resume=file)
        with pytest.raises(DataError, match="another model"):
            PruneMerge.search(vit(global_pool="avg", class_token=False), inputs, resume=file)
        with pytest.raises(DataError, match="another first batch"):
            PruneMerge.search(model, inputs[1:], resume=file)
        file.write_bytes(b"no scores")
        with pytest.raises(DataError, match="cannot be read"):
            PruneMerge.search(model, inputs, resume=file)

    def test_images_of_another_size_than_the_models(self) -> None:
        model = vit(dynamic_img_size=True)
        inputs = [(torch.randn(2, 3, 32, 24), torch.tensor([0, 1]))]
        result = PruneMerge.search(model, inputs, flops=0.7)
        assert result.grid == (8, 6)
        one = inputs[0][0][:1]
        dense = vitfold.flops(model, one)
        assert vitfold.flops(vitfold.fold(model, result), one) / dense == pytest.approx(
            0.7, abs=0.01
        )

    def test_errors(self) -> None:
        model = vit()
        inputs = batches(model)
        for options, words in [
            ({"flops": 0.05}, "nearest share"),
            ({"flops": 0.5, "keep": 0.5}, "one of the two"),
            ({"blocks": [9]}, "4 blocks"),
            ({"keep": 0.8, "prune": 0.5}, "at most 1 together"),
            ({"scope": "everywhere"}, "global or block"),
            ({"grouping": "circles"}, "runs or centers"),
            ({"blocks": [2, 1]}, "rising"),
            ({"blocks": []}, "at least one block"),
            ({"blocks": 2}, "blocks=2"),
            ({"iterations": 0}, "1 or more"),
        ]:
            with pytest.raises(MethodError, match=words):
                PruneMerge.search(model, inputs, **options)  # type: ignore[arg-type]
        with pytest.raises(MethodError, match=r"PruneMerge\.search"):
            vitfold.fold(model, "prune-merge")

    @pytest.mark.parametrize(
        ("loader", "words"),
        [
            ([], "empty"),
            (None, "NoneType gives no batches"),
            (torch.zeros(4, 3, 28, 28), "Tensor gives no batches"),
            ([torch.zeros(4, 3, 28, 28)], "got a Tensor"),
            ([{"pixel_values": torch.zeros(4, 3, 28, 28)}], "got a dict"),
            ([(torch.zeros(4, 3, 28, 28),)], "got a tuple"),
            ([(torch.zeros(4, 3, 28, 28), [0, 1, 2, 3])], "got a tuple"),
            ([(torch.zeros(4, 3, 28, 28).byte(), torch.arange(4))], "uint8"),
            ([(torch.zeros(4, 3, 28, 28), torch.arange(3))], "a label for each"),
            ([(torch.zeros(4, 3, 28, 28), torch.arange(4) + 5)], "the model has 7 classes"),
            ([(torch.full((4, 3, 28, 28), math.nan), torch.arange(4))], "not finite"),
        ],
    )
    def test_what_are_no_batches(self, loader: Any, words: str) -> None:
        with pytest.raises(DataError, match=words):
            PruneMerge.search(vit(), loader, iterations=2)

    def test_images_are_brought_to_the_model(self) -> None:
        model = vit()
        inputs = batches(model)
        result = PruneMerge.search(model, inputs)
        others = [(pixels.double(), labels) for pixels, labels in inputs]
        assert PruneMerge.search(model, others) == result
        with torch.inference_mode():
            assert PruneMerge.search(model, inputs) == result

    def test_blocks_that_are_computed_again(self) -> None:
        model = vit()
        result = PruneMerge.search(model, batches(model))
        model.set_grad_checkpointing(True)
        assert PruneMerge.search(model, batches(model)) == result

    def test_images_of_two_sizes_are_refused(self) -> None:
        model = vit(dynamic_img_size=True)
        label = torch.tensor([0])
        inputs = [(torch.randn(1, 3, side, side), label) for side in (28, 32)]
        with pytest.raises(DataError, match="one size"):
            PruneMerge.search(model, inputs, iterations=2)

    def test_a_model_without_a_head_is_refused(self) -> None:
        with pytest.raises(DataError, match="has no head"):
            PruneMerge.search(vit(num_classes=0), batches(vit()), iterations=2)

    def test_batches_that_come_once(self) -> None:
        model = vit()
        with pytest.warns(UserWarning, match="gave 3 batches of 10"):
            result = PruneMerge.search(model, iter(batches(model)), iterations=10)
        assert result == PruneMerge.search(model, batches(model), iterations=3)

    def test_what_goes_around_gives_way(self) -> None:
        model = vit()
        assert PruneMerge.search(model, batches(model), keep=1, iterations=1).prune == 0
        result = PruneMerge.search(model, batches(model), flops=0.7, prune=0.5, iterations=1)
        assert 0.1 < result.prune <= 0.5
