"""PruneMerge's structure: what merges and what goes around, by laws."""

from hypothesis import given
from hypothesis import strategies as st

from vitfold.folding.families.hf import MODELS as FAMILIES
from vitfold.methods.prune_merge.structure import GROUPINGS, SCOPES, groups

HUGGING_FACE = [name for names in FAMILIES.values() for name in names]


class TestStructure:
    def test_runs_merge_what_lies_between(self) -> None:
        row = [9.0, 1.0, 0.1, 2.0, 8.0, 3.0, 7.0, 4.0]
        result = groups([row], [0], keep=3 / 8, prune=1 / 8)
        assert result == ((0, 1, -1, 1, 2, 3, 4, 5),)

    def test_centers_take_what_is_nearer_in_their_row(self) -> None:
        row = [9.0, 1.0, 1.1, 1.2, 8.0, 0.5, 0.6, 1.3, 7.0, 1.4, 1.5, 1.6, 0.7, 1.7, 1.8]
        result = groups([row], [0], 3 / 15, 0, grouping="centers", columns=5)
        assert result == ((0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3),)

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
        result = groups(table, range(blocks), keep, prune, scope, grouping, columns)
        around = sum(group.count(-1) for group in result)
        assert around <= round(prune * patches * blocks) + blocks
        for group in result:
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
            assert set(result) == {tuple(range(patches))}
