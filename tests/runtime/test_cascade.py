"""Which rows share which blocks, and when it pays to read them once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.runtime.cascade import Rates, Run, SharingRule, choose_runs, saved_tokens
from penstock.runtime.prefix_tree import Node, PrefixTree

FREE = SharingRule(
    rates=Rates(read_bytes_per_s=1.0, flop_per_s=1.0, step_s=0.0, run_s=0.0), key_bytes=1, key_flop=0, row_bytes=0
)


def tree_of(tables: dict[int, list[int]]) -> PrefixTree:
    tree = PrefixTree()
    for row, table in tables.items():
        tree.add(row, np.array(table, np.int32))
    return tree


def runs_of(tree: PrefixTree, sharing: SharingRule = FREE, block_tokens: int = 16) -> set[Run]:
    runs = choose_runs(tree, sharing, block_tokens)
    assert len(set(runs)) == len(runs)
    return {replace(run, rows=tuple(sorted(run.rows))) for run in runs}


def covered(tables: dict[int, list[int]], runs: set[Run]) -> Counter[tuple[int, int]]:
    """How often each (row, entry of its table) is read: by runs, and by each row behind its last run."""
    behind = {row: max((run.stop for run in runs if row in run.rows), default=0) for row in tables}
    found = Counter((row, entry) for run in runs for row in run.rows for entry in range(run.first, run.stop))
    return found + Counter((row, entry) for row, table in tables.items() for entry in range(behind[row], len(table)))


def shape(node: Node) -> tuple[object, ...]:
    children = sorted((shape(child) for child in node.children.values()), key=str)
    return node.first, tuple(node.blocks.tolist()), tuple(sorted(node.rows)), node.n_rows, tuple(children)


def test_a_hand_made_tree_gives_the_expected_runs():
    tables = {
        0: [1, 2, 3, 10],
        1: [1, 2, 3, 4, 11],
        2: [1, 2, 3, 4, 12],
        3: [1, 2, 7],
        4: [9],
        5: [],
        6: [1, 2, 3, 4],
    }
    assert runs_of(tree_of(tables)) == {
        Run((0, 1, 2, 3, 6), 0, 2, 0),
        Run((0, 1, 2, 6), 2, 3, 1),
        Run((1, 2, 6), 3, 4, 2),
    }
    assert saved_tokens(choose_runs(tree_of(tables), FREE, 16), 16) == 16 * (4 * 2 + 3 * 1 + 2 * 1)


def test_two_prompts_with_samples_behind_one_system_prompt_make_two_levels():
    tables = {row: [5, 6, 7, 20 + row // 3, 30 + row // 3, 100 + row] for row in range(6)}
    assert runs_of(tree_of(tables)) == {
        Run((0, 1, 2, 3, 4, 5), 0, 3, 0),
        Run((0, 1, 2), 3, 5, 1),
        Run((3, 4, 5), 3, 5, 1),
    }


def test_a_node_that_is_not_worth_a_run_goes_to_its_children():
    tables = {row: [1, *range(20 + 100 * (row // 2), 40 + 100 * (row // 2)), 900 + row] for row in range(4)}
    dear = replace(FREE, rates=replace(FREE.rates, run_s=16 * 3.5))  # one block of four rows saves three blocks
    assert runs_of(tree_of(tables), dear) == {Run((0, 1), 0, 21, 0), Run((2, 3), 0, 21, 0)}


def test_nothing_is_shared_where_all_runs_together_do_not_pay_for_the_layer():
    tree = tree_of({0: [1, 2], 1: [1, 2]})
    assert runs_of(tree, replace(FREE, rates=replace(FREE.rates, step_s=31.9)))
    assert not runs_of(tree, replace(FREE, rates=replace(FREE.rates, step_s=32.0)))


def test_no_row_is_in_more_runs_than_levels():
    tables = {row: list(range(row + 1)) for row in range(8)}
    runs = runs_of(tree_of(tables), replace(FREE, most_levels=2))
    assert {run.level for run in runs} == {0, 1}
    assert max(Counter(row for run in runs for row in run.rows).values()) == 2


# An accelerator of 1 TB/s and 100 TFLOP/s; a layer of 8 KV heads and 32 query heads of 128 features in 16 bits.
LAYER = SharingRule(
    rates=Rates(read_bytes_per_s=1e12, flop_per_s=1e14, step_s=0.0, run_s=10e-6),
    key_bytes=2 * 8 * 128 * 2,
    key_flop=4 * 32 * 128,
    row_bytes=2 * 32 * 129 * 4,
)


@pytest.mark.parametrize(
    ("n_rows", "tokens", "is_worth_it"),
    [
        (1, 10**6, False),  # one row never is
        (2, 2400, False),  # 2400 * 4 KiB less at 1 TB/s are 9.8 us, the run costs 10
        (2, 2600, True),
        (8, 256, False),  # 7.3 us
        (8, 512, True),
        (256, 16, False),  # 16.8 us flat; shared 0.07, partial results 8.5, the run 10
        (256, 32, True),  # 33.6 us flat
        (4096, 8, False),  # a partial result is as long as the keys that its row would read: never worth it
    ],
)
def test_the_rule_knows_both_sides_of_the_cross_over(n_rows, tokens, is_worth_it):
    assert (LAYER.saved_s(n_rows, tokens) > 0) is is_worth_it


def test_where_arithmetic_is_the_limit_sharing_saves_nothing():
    """128 query heads on one latent: each key is multiplied so often that reading it is not what takes the time."""
    latent = replace(LAYER, key_bytes=576 * 2, key_flop=4 * 128 * 576)
    assert latent.saved_s(64, 4096) < 0


blocks = st.lists(st.integers(0, 2), max_size=7)


class Members(RuleBasedStateMachine):
    """Rows join, fork and leave. A block's number names all that comes before it, as in a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = PrefixTree()
        self.tables: dict[int, list[int]] = {}
        self.numbers: dict[tuple[int, ...], int] = {}
        self.n_added = 0

    def _add(self, path: list[int]) -> None:
        table = [self.numbers.setdefault(tuple(path[: k + 1]), len(self.numbers)) for k in range(len(path))]
        self.tables[self.n_added] = table
        self.tree.add(self.n_added, np.array(table, np.int32))
        self.n_added += 1

    @rule(path=blocks)
    def join(self, path):
        self._add(path)

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), more=blocks)
    def fork(self, data, more):
        parent = self.tables[data.draw(st.sampled_from(sorted(self.tables)))]
        numbers = {number: path for path, number in self.numbers.items()}
        kept = data.draw(st.integers(0, len(parent)))
        self._add([*(numbers[parent[kept - 1]] if kept else ()), *more])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def leave(self, data):
        row = data.draw(st.sampled_from(sorted(self.tables)))
        del self.tables[row]
        self.tree.remove(row)

    @invariant()
    def the_tree_is_that_of_its_members_whatever_came_before(self):
        assert shape(self.tree.root) == shape(tree_of(self.tables).root)
        assert set(self.tree) == set(self.tables)

    @invariant()
    def every_row_reads_each_of_its_keys_once(self):
        everything = Counter((row, entry) for row, table in self.tables.items() for entry in range(len(table)))
        for run_s in (0.0, 20.0, 40.0):
            for most_levels in (1, 3):
                sharing = replace(FREE, rates=replace(FREE.rates, run_s=run_s), most_levels=most_levels)
                runs = runs_of(self.tree, sharing)
                assert covered(self.tables, runs) == everything
                for run in runs:
                    assert len(run.rows) > 1
                    assert len({tuple(self.tables[row][run.first : run.stop]) for row in run.rows}) == 1
                    assert sharing.saved_s(len(run.rows), (run.stop - run.first) * 16) > 0
                    assert run.level < most_levels


TestMembers = Members.TestCase
TestMembers.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@given(n_rows=st.integers(2, 4000), tokens=st.integers(1, 10**5))
def test_more_rows_or_more_tokens_never_save_less(n_rows, tokens):
    sharing = replace(LAYER, row_bytes=0)
    assert sharing.saved_s(n_rows + 1, tokens) >= sharing.saved_s(n_rows, tokens) - 1e-12
    assert sharing.saved_s(n_rows, tokens + 1) >= sharing.saved_s(n_rows, tokens) - 1e-12
