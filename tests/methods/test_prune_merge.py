"""PruneMerge: its structure by laws, its scores and its blocks against plain references, and every
family."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import KINDS, hf, inputs, kind
from support.models import images as pictures
from support.small import MODELS, images, vit
from torch import Tensor, nn

import vitfold
from vitfold import DataError, FoldError, MethodError, PlanError, PruneMerge
from vitfold.folding.calls import fold_of
from vitfold.folding.families import find
from vitfold.folding.families.hf import MODELS as FAMILIES
from vitfold.folding.fold import clone
from vitfold.methods.base import from_json
from vitfold.methods.prune_merge.structure import GROUPINGS, SCOPES, groups
from vitfold.tools.bench import bound
from vitfold.tools.importance import Scores

HUGGING_FACE = [name for names in FAMILIES.values() for name in names]


def scores(blocks: int, patches: int, seed: int = 0) -> list[list[float]]:
    generator = torch.Generator().manual_seed(seed)
    rows: list[list[float]] = torch.rand(blocks, patches, generator=generator).tolist()
    return rows


def method(grid: tuple[int, int] = (7, 7), **options: Any) -> PruneMerge:
    blocks = options.pop("blocks", (1, 2, 3))
    settings = {"keep": 0.3, "prune": 0.2} | options
    return PruneMerge(
        blocks=blocks, grid=grid, scores=tuple(map(tuple, scores(len(blocks), math.prod(grid)))),
        **settings,
    )  # fmt: skip


def stir(model: nn.Module) -> None:
    """Matrices as training may leave them: no zeros."""
    generator = torch.Generator().manual_seed(5)
    learned = fold_of(model).learned
    assert learned is not None
    for values in learned.parameters():
        noise = torch.randn(values.shape, generator=generator, dtype=torch.float64)
        values.data.add_(0.05 * noise.to(values.dtype))


class TestStructure:
    def test_runs_merge_what_lies_between(self) -> None:
        row = [9.0, 1.0, 0.1, 2.0, 8.0, 3.0, 7.0, 4.0]
        found = groups([row], [0], keep=3 / 8, prune=1 / 8)
        assert found == ((0, 1, -1, 1, 2, 3, 4, 5),)

    def test_centers_take_what_is_nearer_in_their_row(self) -> None:
        row = [9.0, 1.0, 1.1, 1.2, 8.0, 0.5, 0.6, 1.3, 7.0, 1.4, 1.5, 1.6, 0.7, 1.7, 1.8]
        found = groups([row], [0], 3 / 15, 0, grouping="centers", columns=5)
        assert found == ((0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3),)

    def test_one_threshold_finds_how_many_each_block_keeps(self) -> None:
        sharp, flat = [8.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]
        together = groups([sharp, flat], [0, 0], keep=0.5, prune=0.375)
        assert [max(group) + 1 for group in together] == [1, 4]
        assert together[0] == (0, -1, -1, -1)
        each = groups([sharp, flat], [0, 0], keep=0.5, prune=0.25, scope="block")
        assert each == ((0, 1, 2, -1), (0, 1, 2, -1))

    def test_deeper_blocks_count_a_little_less(self) -> None:
        row = [3.0, 2.0, 1.0, 0.5]
        first, last = groups([row, row], [0, 30], keep=0.25, prune=0)
        assert first == (0, 1, 2, 2)
        assert last == (0, 0, 0, 0)

    def test_a_block_is_never_empty(self) -> None:
        assert groups([[1.0, 5.0, 2.0]], [0], keep=0, prune=1) == ((-1, 0, -1),)

    @given(
        st.integers(1, 6),
        st.integers(1, 9),
        st.integers(1, 3),
        st.floats(0, 1),
        st.floats(0, 1),
        st.sampled_from(SCOPES),
        st.sampled_from(GROUPINGS),
        st.data(),
    )
    def test_laws(
        self, rows: int, columns: int, blocks: int, keep: float, prune: float, scope: str,
        grouping: str, data: st.DataObject,
    ) -> None:  # fmt: skip
        patches = rows * columns
        prune = min(prune, 1 - keep)
        score = st.floats(0, 1e6) | st.sampled_from([0.0, 1.0])
        table = data.draw(
            st.lists(
                st.lists(score, min_size=patches, max_size=patches),
                min_size=blocks,
                max_size=blocks,
            )
        )
        found = groups(table, range(blocks), keep, prune, scope, grouping, columns)
        around = sum(group.count(-1) for group in found)
        assert around <= round(prune * patches * blocks) + blocks
        for group in found:
            slots = [slot for slot in group if slot >= 0]
            assert slots
            firsts = list(dict.fromkeys(slots))
            assert firsts == list(range(len(firsts))), "slots are numbered as they come"
            assert slots == sorted(slots), "what merges is not interrupted"
            if grouping == "centers":
                rows_of = [
                    {p // columns for p, slot in enumerate(group) if slot == s} for s in firsts
                ]
                assert all(len(row) == 1 for row in rows_of), "no group crosses a row"
        if keep == 1:
            assert set(found) == {tuple(range(patches))}


def reference(model: Any, x: Tensor, fold: PruneMerge) -> Tensor:
    """methods.md as it stands: merge, block, restore, and the shortcut of what was pruned."""
    learned: Any = fold_of(model).learned
    dense = clone(model)
    start = dense.prefix if hasattr(dense, "prefix") else dense.num_prefix_tokens
    tokens = dense.norm_pre(dense._pos_embed(dense.patch_embed(x)))
    for index, block in enumerate(dense.blocks):
        if index not in fold.structure:
            tokens = block(tokens)
            continue
        merge, restore = learned.merge[str(index)], learned.restore[str(index)]
        pruned = torch.tensor([slot < 0 for slot in fold.structure[index]], dtype=x.dtype)
        if not fold.shortcut:
            pruned = torch.zeros_like(pruned)
        first, patches = tokens[:, :start], tokens[:, start:]
        out = block(torch.cat([first, merge @ patches], dim=1))
        patches = restore @ out[:, start:] + pruned.unsqueeze(1) * patches
        tokens = torch.cat([out[:, :start], patches], dim=1)
    out: Tensor = dense.forward_head(dense.norm(tokens))
    return out


class TestBlocks:
    @pytest.mark.parametrize("name", ["vit", "deit", "dino"])
    @pytest.mark.parametrize("grouping", GROUPINGS)
    @pytest.mark.parametrize("shortcut", [True, False])
    @torch.no_grad()
    def test_reference(self, name: str, grouping: str, shortcut: bool) -> None:
        """Neighbouring blocks are fused, the reference restores after each."""
        model: Any = MODELS[name]().double()
        fold = method(grouping=grouping, shortcut=shortcut)
        x = images(model)
        dense = model(x)
        vitfold.fold(model, fold)
        expected = reference(model, x, fold)
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(dense, expected, atol=1e-3)
        stir(model)
        stirred = reference(model, x, fold)
        torch.testing.assert_close(model(x), stirred, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(expected, stirred, atol=1e-3)

    def test_restoring_starts_as_the_pseudo_inverse(self) -> None:
        for grouping in GROUPINGS:
            learned: Any = method(grouping=grouping).learn(4, 8)
            for block in "123":
                merge, restore = learned.merge[block].data, learned.restore[block].data
                inverse = torch.linalg.pinv(merge.double())
                torch.testing.assert_close(restore.double(), inverse, atol=1e-6, rtol=1e-6)
                ones = torch.ones(len(merge))
                torch.testing.assert_close(merge.sum(dim=1), ones)

    def test_scores_of_zero_weigh_alike(self) -> None:
        fold = PruneMerge(0, 0, (0,), grid=(1, 4), scores=((0.0, 0.0, 0.0, 0.0),))
        learned: Any = fold.learn(1, 8)
        torch.testing.assert_close(learned.merge["0"].data, torch.full((1, 4), 0.25))

    def test_gradients_reach_the_matrices(self) -> None:
        model = vitfold.fold(vit(global_pool="avg"), method()).train()
        model(images(model, dtype=torch.float32)).square().sum().backward()
        learned = fold_of(model).learned
        assert learned is not None
        for name, values in learned.named_parameters():
            assert values.grad is not None, name
            assert values.grad.abs().max() > 0, name

    def test_what_is_kept_alone_is_left_alone(self) -> None:
        """With nothing to merge, nothing changes, and nothing is learned."""
        model = vit()
        x = images(model, dtype=torch.float32)
        dense = model(x)
        vitfold.fold(model, method(keep=1.0, prune=0.0))
        assert torch.equal(model(x), dense)
        assert fold_of(model).learned is not None
        assert not list(fold_of(model).learned.parameters())  # type: ignore[union-attr]

    @torch.no_grad()
    def test_a_look_at_a_block_shows_dense_tokens(self) -> None:
        model: Any = vitfold.fold(vit().double(), method())
        x = images(model)
        expected = model(x)
        seen = []
        handles = [b.register_forward_hook(lambda *a: seen.append(a[2])) for b in model.blocks]
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
        assert {part.shape for part in seen} == {torch.Size([2, 50, 48])}
        for handle in handles:
            handle.remove()
        last, parts = model.forward_intermediates(x)
        assert len(parts) == 4
        torch.testing.assert_close(last, model.forward_features(x), rtol=1e-10, atol=1e-10)

    def test_trace(self) -> None:
        model = vitfold.fold(vit(), method(blocks=(1, 2)))
        traced = vitfold.trace(model, images(model, dtype=torch.float32))
        seen = [1 + max(group) + 1 for group in method(blocks=(1, 2)).structure.values()]
        assert traced.counts == [[50, 50], [seen[0]] * 2, [seen[1]] * 2, [50, 50]]
        assert traced.maps[1].slots == seen[0]
        structure = torch.tensor(method(blocks=(1, 2)).structure[1])
        slot = traced.maps[1].slot[0, 1:]
        assert torch.equal(slot < 0, structure < 0)
        same = structure.unsqueeze(0) == structure.unsqueeze(1)
        assert torch.equal(slot.unsqueeze(0) == slot.unsqueeze(1), same)
        assert traced.draw(0, block=1).size

    def test_matrices_count_as_flops(self) -> None:
        model = vit()
        x = images(model, 8, dtype=torch.float32)
        dense = vitfold.flops(model, x)
        vitfold.fold(model, method(blocks=(2,), keep=0.4, prune=0.2))
        patches, seen, width = 49, max(method(blocks=(2,), keep=0.4).structure[2]) + 1, 48
        tokens = patches - seen
        attention = 2 * 2 * ((patches + 1) ** 2 - (seen + 1) ** 2) * width
        linear = 2 * tokens * width * (4 * width + 2 * 2 * width)
        matrices = 2 * 2 * patches * seen * width
        assert vitfold.flops(model, x) == dense + 8 * (matrices - attention - linear)


def last_around(grid: tuple[int, int], depth: int) -> PruneMerge:
    """Blocks see the first patches; the others go around."""
    patches = math.prod(grid)
    falling = tuple(float(patches - patch) for patch in range(patches))
    return PruneMerge(
        0.75, 0.25, tuple(range(depth)), "block", grid=grid, scores=(falling,) * depth
    )


class TestFamilies:
    """Where blocks see the first patches and no mixtures, they are those of a sliced model."""

    @torch.no_grad()
    def check(self, model: Any, call: Any) -> None:
        dense = call(model)
        found = fold_of(vitfold.fold(model, "drop", r=0)).family
        grid = found.layout().grid
        assert grid is not None
        vitfold.fold(model, last_around(grid, found.depth))
        expected = call(bound(model))
        torch.testing.assert_close(call(model), expected, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(expected, dense, atol=1e-4)
        vitfold.unfold(model)
        assert torch.equal(call(model), dense)
        assert not [name for name in model.state_dict() if "vitfold" in name]

    @pytest.mark.parametrize("name", KINDS)
    def test_timm(self, name: str) -> None:
        model = kind(name).double()
        shape = find(model).example(3)["x"].shape
        x = pictures(model, 3)
        if x.shape != shape:  # it takes all sizes, and was trained on one
            x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
        self.check(model, lambda model: model(x))

    @pytest.mark.parametrize("name", HUGGING_FACE)
    def test_hugging_face(self, name: str) -> None:
        pytest.importorskip("transformers")
        model = hf(name).double()
        given = {k: v.double() if v.is_floating_point() else v for k, v in inputs(model, 3).items()}

        def call(model: Any) -> Tensor:
            found = model(**given).values()
            parts = [part for p in found for part in (p if isinstance(p, tuple) else [p])]
            return next(part for part in parts[::-1] if isinstance(part, Tensor))

        self.check(model, call)


def batches(model: Any, number: int = 3, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    labels = torch.randint(0, 7, (number, size), generator=generator)
    dtype = next(model.parameters()).dtype
    return [(images(model, size, seed, dtype), labels[seed]) for seed in range(number)]


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
        given = batches(model)
        found = PruneMerge.search(model, given, blocks=[1, 3], iterations=5)
        assert all(values.grad is None for values in model.parameters())
        start = model.num_prefix_tokens
        assert found.scores is not None
        for block, row in zip((1, 3), found.scores, strict=True):
            seen = [materialized(model, block, *given[i % 3])[start:] for i in range(5)]
            expected = torch.stack(seen).mean(dim=0)
            got = torch.tensor(row, dtype=torch.float64)
            torch.testing.assert_close(got, expected, rtol=2e-3, atol=1e-12)

    @pytest.mark.parametrize("share", [0.9, 0.75, 0.6])
    def test_share_of_the_flops(self, share: float) -> None:
        model = vit(depth=6)
        found = PruneMerge.search(model, batches(model), flops=share, iterations=2)
        x = images(model, dtype=torch.float32)
        dense = vitfold.flops(model, x[:1])
        reached = vitfold.flops(vitfold.fold(model, found), x[:1]) / dense
        assert reached == pytest.approx(share, abs=0.01)

    @pytest.mark.parametrize("grouping", GROUPINGS)
    @pytest.mark.parametrize("share", [0.7, 0.6, 0.4])
    def test_share_of_the_flops_of_few_patches(self, share: float, grouping: str) -> None:
        """One patch more or less that stays alone is more than the share may be missed by."""
        model = vit((4, 4))
        given = batches(model)
        found = PruneMerge.search(model, given, flops=share, grouping=grouping, iterations=1)
        one = given[0][0][:1]
        dense = vitfold.flops(model, one)
        reached = vitfold.flops(vitfold.fold(model, found), one) / dense
        assert reached == pytest.approx(share, abs=0.01)

    def test_more_goes_around_only_where_nobody_said_how_much(self) -> None:
        model = vit((4, 4))
        asked = {"flops": 0.4, "grouping": "centers", "iterations": 1}
        assert PruneMerge.search(model, batches(model), **asked).prune > 0.1
        for prune in (0.05, 0.1):
            with pytest.raises(MethodError, match="the nearest share that can is"):
                PruneMerge.search(model, batches(model), prune=prune, **asked)
        with pytest.raises(MethodError):
            PruneMerge.search(model, batches(model), keep=0.95, prune=0.1)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
    def test_rates_are_found_in_the_type_of_the_model(self, dtype: torch.dtype) -> None:
        model, given = vit(patch_drop_rate=0.25).train(), batches(vit())
        model.to(dtype)
        found = PruneMerge.search(model, given, flops=0.6, iterations=1)
        one = given[0][0][:1].to(dtype)
        model.eval()
        dense = vitfold.flops(model, one)
        reached = vitfold.flops(vitfold.fold(model, found), one) / dense
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
        given = batches(model, number=25)
        whole = PruneMerge.search(model, given, iterations=25)

        def failing() -> Any:
            yield from given[:13]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            PruneMerge.search(model, failing(), iterations=25, resume=file)
        assert Scores.start(model, (1, 2, 3), (7, 7), given[0], 25, file).batches == 10
        again = PruneMerge.search(model, given, iterations=25, resume=file)
        assert again == whole
        with pytest.raises(DataError, match="25 batches, more than iterations=10"):
            PruneMerge.search(model, given, iterations=10, resume=file)
        with pytest.raises(DataError, match="another blocks"):
            PruneMerge.search(model, given, blocks=[0], resume=file)
        with pytest.raises(DataError, match="another model"):
            PruneMerge.search(vit(global_pool="avg", class_token=False), given, resume=file)
        with pytest.raises(DataError, match="another first batch"):
            PruneMerge.search(model, given[1:], resume=file)
        file.write_bytes(b"no scores")
        with pytest.raises(DataError, match="cannot be read"):
            PruneMerge.search(model, given, resume=file)

    def test_images_of_another_size_than_the_models(self) -> None:
        model = vit(dynamic_img_size=True)
        given = [(torch.randn(2, 3, 32, 24), torch.tensor([0, 1]))]
        found = PruneMerge.search(model, given, flops=0.7)
        assert found.grid == (8, 6)
        one = given[0][0][:1]
        dense = vitfold.flops(model, one)
        assert vitfold.flops(vitfold.fold(model, found), one) / dense == pytest.approx(
            0.7, abs=0.01
        )

    def test_errors(self) -> None:
        model = vit()
        given = batches(model)
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
                PruneMerge.search(model, given, **options)  # type: ignore[arg-type]
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
        given = batches(model)
        found = PruneMerge.search(model, given)
        others = [(pixels.double(), labels) for pixels, labels in given]
        assert PruneMerge.search(model, others) == found
        with torch.inference_mode():
            assert PruneMerge.search(model, given) == found

    def test_blocks_that_are_computed_again(self) -> None:
        model = vit()
        found = PruneMerge.search(model, batches(model))
        model.set_grad_checkpointing(True)
        assert PruneMerge.search(model, batches(model)) == found

    def test_images_of_two_sizes_are_refused(self) -> None:
        model = vit(dynamic_img_size=True)
        label = torch.tensor([0])
        given = [(torch.randn(1, 3, side, side), label) for side in (28, 32)]
        with pytest.raises(DataError, match="one size"):
            PruneMerge.search(model, given, iterations=2)

    def test_a_model_without_a_head_is_refused(self) -> None:
        with pytest.raises(DataError, match="has no head"):
            PruneMerge.search(vit(num_classes=0), batches(vit()), iterations=2)

    def test_batches_that_come_once(self) -> None:
        model = vit()
        with pytest.warns(UserWarning, match="gave 3 batches of 10"):
            found = PruneMerge.search(model, iter(batches(model)), iterations=10)
        assert found == PruneMerge.search(model, batches(model), iterations=3)

    def test_what_goes_around_gives_way(self) -> None:
        model = vit()
        assert PruneMerge.search(model, batches(model), keep=1, iterations=1).prune == 0
        found = PruneMerge.search(model, batches(model), flops=0.7, prune=0.5, iterations=1)
        assert 0.1 < found.prune <= 0.5


def folded_layout(model: nn.Module) -> Any:
    return fold_of(vitfold.fold(clone(model), "drop", r=0)).family.layout()


class TestSaving:
    def test_comes_back(self, tmp_path: Path) -> None:
        model = vitfold.fold(vit(), method())
        stir(model)
        x = images(model, dtype=torch.float32)
        vitfold.save(model, tmp_path)
        again = vitfold.load(tmp_path, vit())
        assert torch.equal(again(x), model(x))
        assert fold_of(again).method == method()
        assert str(fold_of(again).method) == "PruneMerge(keep=0.3, prune=0.2, blocks=(1, 2, 3))"

    def test_matrices_of_another_shape_are_refused(self, tmp_path: Path) -> None:
        model = vitfold.fold(vit(), method())
        vitfold.save(model, tmp_path)
        plan = tmp_path / "plan.json"
        plan.write_text(plan.read_text().replace('"keep": 0.3', '"keep": 0.4'))
        with pytest.raises(PlanError, match="has shape"):
            vitfold.load(tmp_path, vit())
        plan.write_text(plan.read_text().replace('"scores": [', '"scores": [[1.0],'))
        with pytest.raises(PlanError, match="rows of scores"):
            vitfold.load(tmp_path, vit())

    def test_a_plan_that_claims_more_than_any_memory(self, tmp_path: Path) -> None:
        vitfold.save(vitfold.fold(vit(), method()), tmp_path)
        plan = json.loads((tmp_path / "plan.json").read_text())
        claimed = {"blocks": [1], "grid": [400, 400], "scores": [[1] * 160_000]}
        plan["method"] |= claimed
        (tmp_path / "plan.json").write_text(json.dumps(plan, separators=(",", ":")))
        with pytest.raises(PlanError, match=r"weights\.safetensors"):
            vitfold.load(tmp_path, vit())

    def test_images_of_another_size(self) -> None:
        model: Any = vitfold.fold(vit(dynamic_img_size=True), method())
        with pytest.raises(MethodError, match="7 x 7 patches, these images have 8 x 8"):
            model(torch.randn(1, 3, 32, 32))

    def test_padded_images(self) -> None:
        model: Any = kind("naflexvit_base_patch16_gap")
        grid = folded_layout(model).grid
        vitfold.fold(model, last_around(grid, 2))
        given = torch.randn(1, math.prod(grid), 16 * 16 * 3)
        place = torch.arange(math.prod(grid))
        coord = torch.stack([place // grid[1], place % grid[1]], dim=1).unsqueeze(0)
        valid = (place < 20).unsqueeze(0)
        with pytest.raises((FoldError, MethodError)):
            model(given, patch_coord=coord, patch_valid=valid)


class TestShapes:
    def fold_of(self) -> Any:
        model = vitfold.fold(vit(depth=5), method())
        stir(model)
        return model

    def test_compiles(self) -> None:
        model = self.fold_of()
        x = images(model, 7, dtype=torch.float32)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x))

    def test_exports(self) -> None:
        model = self.fold_of()
        x = images(model, 7, dtype=torch.float32)
        dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
        exported: Any = torch.export.export(model, (x,), dynamic_shapes=dynamic).module()
        for some in (x, x[:1]):
            torch.testing.assert_close(exported(some), model(some))

    def test_copies_and_batches(self) -> None:
        model = self.fold_of().double()
        x = images(model, 3)
        assert torch.equal(copy.deepcopy(model)(x), model(x))
        alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(alone, model(x), rtol=1e-10, atol=1e-10)


@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    other=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    data=st.data(),
)
@settings(deadline=None, max_examples=40)
def test_another_size_has_scores_between_those_that_were_found(
    grid: tuple[int, int], other: tuple[int, int], data: st.DataObject
) -> None:
    patches = math.prod(grid)
    row = st.lists(st.floats(0, 100), min_size=patches, max_size=patches)
    scores = [data.draw(row), data.draw(row)]
    found = PruneMerge(0.5, 0.1, (0, 2), grid=grid, scores=scores)
    moved = found.resize(list(other))
    assert moved.grid == other
    assert moved.scores is not None
    for ours, before in zip(moved.scores, scores, strict=True):
        assert len(ours) == math.prod(other)
        assert min(before) * 0.999 <= min(ours)
        assert max(ours) <= max(before) * 1.001
    same = found.resize(grid).scores
    assert torch.tensor(same) == pytest.approx(torch.tensor(scores), rel=1e-3)
    assert from_json(json.loads(json.dumps(moved.to_json()))) == moved
    alike = PruneMerge(0.5, 0.1, (0,), grid=grid, scores=[[3.0] * patches]).resize(other)
    assert alike.scores == ((3.0,) * math.prod(other),)


def test_a_resized_search_folds_a_resized_model() -> None:
    scores = [[float(i % 11) for i in range(49)]] * 2
    found = PruneMerge(0.3, 0.2, (1, 2), grid=(7, 7), scores=scores)
    model = vit(grid=(9, 6))
    with pytest.raises(MethodError, match="resize"):
        vitfold.fold(model, found)(images(model, 2).float())
    moved = found.resize((9, 6))
    vitfold.fold(model, moved)
    assert model(images(model, 2).float()).shape == (2, 7)
    for wrong in ((0, 3), (3,), None):
        with pytest.raises(MethodError):
            found.resize(wrong)  # type: ignore[arg-type]
