"""PruneMerge: its blocks against a plain reference, every family, saved, compiled and resized."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hf_models import DEEP
from support.matrices import method, stir
from support.models import KINDS, hf, inputs, kind
from support.models import images as pictures
from support.small import MODELS, images, vit
from torch import Tensor, nn

import vitfold
from vitfold import FoldError, MethodError, PlanError, PruneMerge
from vitfold.folding.calls import fold_of
from vitfold.folding.families import find
from vitfold.folding.fold import clone
from vitfold.methods.prune_merge.structure import GROUPINGS
from vitfold.methods.registry import from_json
from vitfold.tools.baselines import bound

HUGGING_FACE = [name for names in DEEP.values() for name in names]


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

    def test_matrices_are_contiguous(self) -> None:
        """Sharding takes no other parameters."""
        for grouping in GROUPINGS:
            learned: Any = method(grouping=grouping).learn(4, 8)
            assert all(values.is_contiguous() for values in learned.parameters())

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
        visits = []
        handles = [b.register_forward_hook(lambda *a: visits.append(a[2])) for b in model.blocks]
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
        assert {part.shape for part in visits} == {torch.Size([2, 50, 48])}
        for handle in handles:
            handle.remove()
        last, parts = model.forward_intermediates(x)
        assert len(parts) == 4
        torch.testing.assert_close(last, model.forward_features(x), rtol=1e-10, atol=1e-10)

    def test_trace(self) -> None:
        model = vitfold.fold(vit(), method(blocks=(1, 2)))
        traced = vitfold.trace(model, images(model, dtype=torch.float32))
        visits = [1 + max(group) + 1 for group in method(blocks=(1, 2)).structure.values()]
        assert traced.counts == [[50, 50], [visits[0]] * 2, [visits[1]] * 2, [50, 50]]
        assert traced.maps[1].slots == visits[0]
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
        patches, visits, width = 49, max(method(blocks=(2,), keep=0.4).structure[2]) + 1, 48
        tokens = patches - visits
        attention = 2 * 2 * ((patches + 1) ** 2 - (visits + 1) ** 2) * width
        linear = 2 * tokens * width * (4 * width + 2 * 2 * width)
        matrices = 2 * 2 * patches * visits * width
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
        result = fold_of(vitfold.fold(model, "drop", r=0)).family
        grid = result.layout().grid
        assert grid is not None
        vitfold.fold(model, last_around(grid, result.depth))
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
            result = model(**given).values()
            parts = [part for p in result for part in (p if isinstance(p, tuple) else [p])]
            return next(part for part in parts[::-1] if isinstance(part, Tensor))

        self.check(model, call)


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
@settings(max_examples=40)
def test_another_size_has_scores_between_those_that_were_found(
    grid: tuple[int, int], other: tuple[int, int], data: st.DataObject
) -> None:
    patches = math.prod(grid)
    row = st.lists(st.floats(0, 100), min_size=patches, max_size=patches)
    scores = [data.draw(row), data.draw(row)]
    result = PruneMerge(0.5, 0.1, (0, 2), grid=grid, scores=scores)
    moved = result.resize(list(other))
    assert moved.grid == other
    assert moved.scores is not None
    for ours, before in zip(moved.scores, scores, strict=True):
        assert len(ours) == math.prod(other)
        assert min(before) * 0.999 <= min(ours)
        assert max(ours) <= max(before) * 1.001
    same = result.resize(grid).scores
    assert torch.tensor(same) == pytest.approx(torch.tensor(scores), rel=1e-3)
    assert from_json(json.loads(json.dumps(moved.to_json()))) == moved
    alike = PruneMerge(0.5, 0.1, (0,), grid=grid, scores=[[3.0] * patches]).resize(other)
    assert alike.scores == ((3.0,) * math.prod(other),)


def test_a_resized_search_folds_a_resized_model() -> None:
    scores = [[float(i % 11) for i in range(49)]] * 2
    result = PruneMerge(0.3, 0.2, (1, 2), grid=(7, 7), scores=scores)
    model = vit(grid=(9, 6))
    with pytest.raises(MethodError, match="resize"):
        vitfold.fold(model, result)(images(model, 2).float())
    moved = result.resize((9, 6))
    vitfold.fold(model, moved)
    assert model(images(model, 2).float()).shape == (2, 7)
    for wrong in ((0, 3), (3,), None):
        with pytest.raises(MethodError):
            result.resize(wrong)  # type: ignore[arg-type]
