"""What follows the decode group: nothing is made anew while nobody joins or leaves."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
import torch

from penstock.core.executor import StateKind, StateSpec
from penstock.core.plan import DecodeGroup, Plan, RowStart
from penstock.core.request import SamplingParams
from penstock.runtime.cascade import Rates, SharingRule
from penstock.runtime.layout import Layout
from penstock.runtime.rows import Rows
from penstock.runtime.sharing import Sharing

EAGER = SharingRule(
    rates=Rates(read_bytes_per_s=1.0, flop_per_s=1.0, step_s=0.0, run_s=0.0), key_bytes=1, key_flop=0, row_bytes=0
)
FULL = StateSpec(name="kv", kind=StateKind.PAGED, layers=(0,), block_tokens=4, block_bytes=1)
WINDOW = StateSpec(
    name="w", kind=StateKind.WINDOWED, layers=(1,), block_tokens=4, block_bytes=1, window_tokens=6, chunk_tokens=8
)


@pytest.fixture
def rows():
    return Rows(max_rows=6, states=(FULL, WINDOW), max_model_tokens=64, device=torch.device("cpu"))


def begin(rows: Rows, row: int, tokens: int, blocks: tuple[int, ...]) -> None:
    """A sequence of so many known tokens takes a row, all computed but the last."""
    start = RowStart(
        row=row, tokens=array("i", [1] * tokens), prompt_tokens=tokens, computed_tokens=tokens - 1,
        blocks=(blocks, blocks), sampling=SamplingParams(), seed=0,
    )  # fmt: skip
    rows.apply(Plan(starts=(start,)), [np.ones(tokens, np.int32)])


def test_a_steady_group_gets_the_same_object_and_a_change_another(rows):
    sharing = Sharing(rows, (EAGER, None))
    for row in range(3):
        begin(rows, row, 14, (5, 6, 7, 20 + row))
    group = DecodeGroup((0, 1, 2), 1)
    found = sharing.of(group)
    assert [(run.keys, run.stop - run.first) for run in found[0].runs.runs_host] == [(12, 3)]
    assert found[0].saved_tokens == 24
    assert found[1] is None
    assert sharing.of(group) is found
    begin(rows, 5, 9, (5, 6, 40))  # it computes its prompt: not in the group
    assert sharing.of(group) is found
    joined = sharing.of(DecodeGroup((0, 1, 2, 5), 2))
    assert [(run.keys, run.level) for run in joined[0].runs.runs_host] == [(8, 0), (4, 1)]
    assert joined[0].first_host_S.tolist() == [3, 3, 3, 2]
    assert sharing.of(DecodeGroup((2,), 3)) == ()


def test_a_row_that_another_sequence_took_is_not_taken_for_the_old_one(rows):
    sharing = Sharing(rows, (EAGER, None))
    for row in range(2):
        begin(rows, row, 9, (5, 6, 20 + row))
    assert sharing.of(DecodeGroup((0, 1), 1))
    rows.apply(Plan(ends=(1,)), [])
    begin(rows, 1, 9, (8, 9, 30))
    assert sharing.of(DecodeGroup((0, 1), 1)) == ()


@pytest.mark.parametrize("tokens", [8, 9, 12, 13])
def test_a_block_with_the_next_input_token_is_never_shared(rows, tokens):
    """Two rows with equal tables: what the rule may share ends before the token that each computes now."""
    sharing = Sharing(rows, (EAGER, None))
    for row in range(2):
        begin(rows, row, tokens, (5, 6, 7, 8))
    found = sharing.of(DecodeGroup((0, 1), 1))
    assert found[0].runs.runs_host[0].keys == (tokens - 1) // 4 * 4


def test_what_is_shared_and_what_is_left_is_the_whole_table(rows):
    """Beside a chunk, which reads alone."""
    sharing = Sharing(rows, (EAGER, None))
    for row in range(2):
        begin(rows, row, 11 + row, (5, 6, 20 + row))
    begin(rows, 4, 7, (5, 6))
    shared = sharing.of(DecodeGroup((1, 0), 1))
    layout = Layout(np.array([1, 0, 4]), np.array([1, 1, 1]), torch.device("cpu"))
    batch, windowed = layout.batches(rows, shared=shared)
    assert batch.kv_lens_host == (12 - 8, 11 - 8, 7)
    assert batch.kv_lens.tolist() == [4, 3, 7]
    assert batch.tables_SB[:2, 0].tolist() == [21, 20]
    assert batch.tables_SB[2, :2].tolist() == [5, 6]
    assert batch.positions_T.tolist() == [11, 10, 6]
    (run,) = batch.shared.runs_host
    assert batch.shared.tables[run.table_start : run.table_start + 2].tolist() == [5, 6]
    assert batch.shared.members_M.tolist() in ([0, 1], [1, 0])
    assert windowed.shared is None
