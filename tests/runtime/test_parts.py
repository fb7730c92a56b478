"""The parts of a step, one at a time."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.executor import ModelFacts, StateKind, StateSpec
from penstock.core.plan import BlockCopy, Plan, RowBlocks, RowStart
from penstock.core.request import SamplingParams
from penstock.runtime.block_copies import independent_copies
from penstock.runtime.layout import Layout, Stretch, group_runs, stretches
from penstock.runtime.rows import Int, Rows
from penstock.runtime.transforms import stop_ids

CPU = torch.device("cpu")
BLOCK = 4


def paged(name: str, *layers: int) -> StateSpec:
    return StateSpec(name=name, kind=StateKind.PAGED, layers=layers, block_tokens=BLOCK, block_bytes=1)


def row_start(row: int, n_tokens: int, blocks: tuple[int, ...], **sampling: object) -> RowStart:
    return RowStart(
        row=row,
        tokens=array("i", range(10, 10 + n_tokens)),
        prompt_tokens=n_tokens,
        computed_tokens=0,
        blocks=(blocks,),
        sampling=SamplingParams(**sampling),
        seed=2**64 - 1,
    )


def apply(rows: Rows, plan: Plan) -> None:
    rows.apply(plan, [np.array(start.tokens, np.int32) for start in plan.starts])


@pytest.fixture
def rows() -> Rows:
    return Rows(max_rows=3, states=[paged("kv", 0)], max_model_tokens=40, device=CPU)


def test_starts_then_grows_make_the_tables_and_a_new_sequence_finds_no_old_entry(rows):
    apply(rows, Plan(starts=(row_start(1, 9, (5, 6, 7)),), grows=(RowBlocks(1, 0, 2, (8, 9)),)))
    assert rows.tables[0].mirror.dev[1].tolist() == [5, 6, 8, 9] + [0] * 6
    apply(rows, Plan(ends=(1,), starts=(row_start(1, 9, (3, 2, 1)),)))
    apply(rows, Plan(ends=(1,), starts=(row_start(1, 2, (4,)),)))
    assert rows.tables[0].mirror.dev[1].tolist() == [4] + [0] * 9


def test_a_started_row_stands_at_its_last_known_token(rows):
    apply(rows, Plan(starts=(row_start(2, 5, (1, 2)),)))
    assert (int(rows.last_R[2]), int(rows.positions_R[2]), int(rows.positions_host_R[2])) == (14, 4, 4)
    assert int(rows.ints.dev[2, Int.SEED]) == -1  # the 64 bits of 2**64 - 1


def test_a_taken_row_cannot_start_again_before_its_end(rows):
    apply(rows, Plan(starts=(row_start(0, 1, (1,)),)))
    with pytest.raises(AssertionError, match="row 0 is taken"):
        apply(rows, Plan(starts=(row_start(0, 1, (1,)),)))


def test_a_table_has_no_entry_beyond_the_longest_sequence(rows):
    with pytest.raises(AssertionError, match="entry 10 is beyond its table of 10 blocks"):
        apply(rows, Plan(grows=(RowBlocks(0, 0, 9, (1, 2)),)))


def test_a_layout_says_where_each_token_stands_and_is_written(rows):
    apply(rows, Plan(starts=(row_start(0, 6, (7, 3)), row_start(2, 9, (1, 5, 4)))))
    rows.place(np.array([2]), np.array([3]))  # a chunk of row 2 from token 3 on; row 0 decodes token 5
    (batch,) = Layout(np.array([0, 2]), np.array([1, 3]), CPU).batches(rows)
    assert batch.positions_T.tolist() == [5, 3, 4, 5]
    assert batch.slots_T.tolist() == [3 * BLOCK + 1, 1 * BLOCK + 3, 5 * BLOCK, 5 * BLOCK + 1]
    assert batch.q_starts.tolist() == list(batch.q_starts_host) == [0, 1, 4]
    assert batch.kv_lens.tolist() == list(batch.kv_lens_host) == [6, 6]
    assert batch.tables_SB.tolist() == [[7, 3], [1, 5]]
    assert not batch.is_decode


spans_of_8 = st.tuples(st.integers(0, 7), st.integers(1, 8)).filter(lambda span: span[0] < span[1])


@given(spans=st.lists(spans_of_8, min_size=1, max_size=5), groups=st.lists(st.integers(0, 2), min_size=8, max_size=8))
def test_stretches_cover_each_span_once_in_order_and_never_mix_groups(spans, groups):
    states = [paged(str(group), *(layer for layer in range(8) if groups[layer] == group)) for group in range(3)]
    walked: list[list[int]] = [[] for _ in spans]
    for stretch in stretches(spans, group_runs(8, states), 8):
        assert {groups[layer] for layer in range(stretch.first, stretch.stop)} == {stretch.group}
        for segment in stretch.active:
            walked[segment] += range(stretch.first, stretch.stop)
    assert walked == [list(range(*span)) for span in spans]


def test_whole_passes_run_in_one_stretch():
    assert list(stretches([(0, 8)] * 3, group_runs(8, [paged("kv", *range(8))]), 8)) == [Stretch(0, 8, 0, (0, 1, 2))]


def test_layers_without_state_join_the_run_before_them():
    assert group_runs(5, [paged("a", 0), paged("b", 3)]) == ((0, 0), (3, 1))


@given(copies=st.lists(st.builds(BlockCopy, st.integers(0, 1), st.integers(0, 4), st.integers(0, 4)), max_size=8))
def test_copies_at_once_equal_copies_one_by_one(copies):
    one_by_one, at_once = [[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]] for _ in range(2)]
    for copy in copies:
        one_by_one[copy.group][copy.target] = one_by_one[copy.group][copy.source]
    for run in independent_copies(copies):
        read = [at_once[copy.group][copy.source] for copy in run]
        for copy, content in zip(run, read, strict=True):
            at_once[copy.group][copy.target] = content
        assert len({copy.group for copy in run}) == 1
        assert len({copy.target for copy in run}) == len(run)  # a device may write equal targets in any order
    assert at_once == one_by_one


def test_stop_ids_outside_the_vocabulary_are_nothing_to_hold_back():
    facts = ModelFacts(
        name="",
        n_layers=1,
        vocab_size=20,
        max_model_tokens=8,
        stop_token_ids=frozenset({2}),
        states=(),
        weight_bytes=0,
    )
    assert stop_ids(row_start(0, 1, (), stop_token_ids=(19, 20, 5)), facts) == [2, 5, 19]
    assert stop_ids(row_start(0, 1, (), stop_token_ids=(19, 2), ignore_eos=True), facts) == [2, 19]


@pytest.mark.parametrize("start", range(20, 37))
def test_a_batch_for_bounded_positions_serves_every_position_below(start):
    """What a captured step is laid out for: tables are wide enough, and lengths are the device's."""
    window = StateSpec(
        chunk_tokens=8,
        name="window",
        kind=StateKind.WINDOWED,
        layers=(0,),
        block_tokens=4,
        block_bytes=1,
        window_tokens=9,
    )
    whole = StateSpec(name="whole", kind=StateKind.PAGED, layers=(1,), block_tokens=4, block_bytes=1)
    rows = Rows(max_rows=2, states=(window, whole), max_model_tokens=40, device=torch.device("cpu"))
    for tables in rows.tables:
        tables.write([(row, tuple(range(10 * row, 10 * row + 10))) for row in range(2)], ())
    rows.place(np.array([0, 1]), np.array([start, 3]))
    layout = Layout(np.array([0, 1]), np.array([1, 1]), torch.device("cpu"))
    for exact, bounded in zip(layout.batches(rows), layout.batches(rows, np.array([39, 39])), strict=True):
        assert bounded.kv_lens.tolist() == exact.kv_lens.tolist()
        assert bounded.slots_T.tolist() == exact.slots_T.tolist()
        assert max(bounded.kv_lens_host) >= max(exact.kv_lens_host)
        n_entries = exact.tables_SB.shape[1]
        assert bounded.tables_SB[:, :n_entries].tolist() == exact.tables_SB.tolist()
