"""The host tier: what is copied and what is not, who may lie there, and that nothing is lost on either side."""

from __future__ import annotations

import pytest

from penstock.cache.blocks import BlockState
from penstock.cache.host import HostTier
from penstock.cache.memory import Memory
from penstock.core.plan import BlockMove, Toward
from penstock.core.sequence import SeqState
from penstock.policy.retain.lru import LeastRecentlyUsed
from tests.cache.test_groups import KINDS
from tests.cache.test_memory import make_seq
from tests.cache.toy_groups import KEY_TOKENS
from tests.policy.views import Costs

CHEAP = Costs(token_s=1.0, byte_s=1e-9)  # copying is nearly free


class Bench:
    """Memory with a host tier, and plans that land when the test says so."""

    def __init__(self, n_blocks=12, n_host_blocks=12, costs=CHEAP, kinds=("paged",), **options):
        groups = tuple(KINDS[kind](n_blocks) for kind in kinds)
        self.host = HostTier(groups, (n_host_blocks,) * len(groups), LeastRecentlyUsed, costs)
        self.memory = Memory(groups, KEY_TOKENS, host=self.host, **options)
        self.n_plans = 0

    def plan(self) -> tuple[BlockMove, ...]:
        """The plan goes out; its moves."""
        self.n_plans += 1
        moves = self.memory.take_moves(self.n_plans)
        self.memory.audit()
        return moves

    def begin(self, name, tokens, length=None):
        """A sequence that has computed all it knows; its start went out with a plan."""
        seq = make_seq(name, tokens)
        hit, _ = self.memory.start(seq)
        self.enter(seq, hit)
        self.plan()
        self.compute(seq, length or len(tokens))
        return seq

    def enter(self, seq, tokens):
        seq.row = 0
        seq.move(SeqState.RUNNING)
        seq.plan_to(tokens)

    def compute(self, seq, stop):
        assert self.memory.try_grow(seq, stop) is not None
        seq.plan_to(stop)
        self.memory.note_written(seq)

    def swap_out(self, seq):
        self.memory.swap_out(seq)
        seq.row = None
        seq.move(SeqState.SWAPPED)

    def swap_in(self, seq):
        tables = self.memory.try_swap_in(seq)
        if tables is not None:
            self.enter(seq, seq.planned_tokens)
        return tables

    def end(self, seq):
        if seq.row is not None:
            self.memory.release(seq, 0.0, is_over=True)
            seq.row = None
        self.memory.forget(seq)
        self.memory.audit()

    @property
    def host_pool(self):
        return self.host.groups[0].pool


def test_a_swapped_sequence_gives_all_its_blocks_and_takes_as_many_there():
    bench = Bench(n_blocks=5)
    seq = bench.begin("a", [1] * 18)
    assert bench.memory.swap_bytes(seq) == 5 * 64
    bench.swap_out(seq)
    moves = bench.plan()
    assert [(move.block, move.toward) for move in moves] == [(block, Toward.HOST) for block in range(5)]
    assert bench.memory.pools[0].available_blocks == 5
    assert bench.host_pool.available == 7
    assert bench.memory.hit_tokens(seq) == 17, "one token is always computed"
    bench.end(seq)
    assert bench.host_pool.available == 12


def test_a_block_nobody_can_find_moves_until_its_copy_has_landed():
    bench = Bench()
    seq = bench.begin("a", [1] * 6)
    bench.swap_out(seq)
    bench.plan()
    pool = bench.memory.groups[0].pool
    assert (pool.state(0), pool.state(1)) == (BlockState.CACHED, BlockState.MOVING)
    assert bench.memory.landed(bench.n_plans) == 2 * 64
    assert pool.state(1) is BlockState.FREE
    bench.memory.audit()


def test_a_block_that_was_given_away_meanwhile_is_not_freed_when_its_copy_lands():
    bench = Bench(n_blocks=2)
    first = bench.begin("a", [1] * 6)
    bench.swap_out(first)
    bench.plan()
    second = bench.begin("b", [2] * 6)
    bench.memory.landed(2)
    bench.memory.audit()
    bench.swap_out(second)
    moving = bench.n_plans + 1
    bench.plan()
    assert bench.memory.landed(moving) == 2 * 64


def test_it_comes_back_to_what_it_was_and_only_what_the_device_lost_is_copied():
    bench = Bench(n_blocks=5)
    seq = bench.begin("a", [1] * 18)
    bench.swap_out(seq)
    bench.plan()
    other = bench.begin("b", [2] * 9)  # takes three blocks, first the one that moves, then the deepest ones
    assert bench.swap_in(seq) is None, "two are left, and they are its own"
    bench.end(other)
    (table,) = bench.swap_in(seq)
    assert len(set(table)) == 5
    moves = bench.plan()
    assert [move.toward for move in moves].count(Toward.DEVICE) == 3
    assert bench.host_pool.count(BlockState.ACTIVE) == 0


def test_what_several_share_is_copied_once():
    bench = Bench(n_blocks=20)
    first, second = bench.begin("a", [1] * 17), bench.begin("b", [1] * 16 + [2] * 3)
    assert bench.memory.counters.hit_tokens == 16
    bench.swap_out(first)
    assert bench.memory.swap_bytes(second) == 64
    bench.swap_out(second)
    assert len(bench.plan()) == 5 + 1
    assert bench.host_pool.count(BlockState.ACTIVE) == 6
    bench.end(first)
    assert bench.host_pool.count(BlockState.ACTIVE) == 5


def test_what_the_host_still_has_is_not_copied_again():
    bench = Bench(n_blocks=20)
    seq = bench.begin("a", [1] * 18)
    bench.swap_out(seq)
    bench.plan()
    assert bench.swap_in(seq) is not None
    bench.plan()
    seq.tokens.extend([1] * 4)
    bench.compute(seq, 22)
    assert bench.memory.swap_bytes(seq) == 2 * 64, "the block that was full since, and the last one"


def test_nobody_is_swapped_whom_the_host_has_no_room_for():
    bench = Bench(n_host_blocks=3)
    small, large = bench.begin("a", [1] * 9), bench.begin("b", [2] * 9)
    bench.swap_out(small)
    bench.plan()
    assert bench.memory.swap_bytes(large) is None


def test_swapped_sequences_take_the_room_of_prefixes_and_never_the_other_way_round():
    bench = Bench(n_blocks=4, n_host_blocks=4)
    bench.end(bench.begin("a", [1] * 16))
    bench.end(bench.begin("b", [2] * 13))  # all of a's prefix goes to the host
    assert bench.host_pool.count(BlockState.CACHED) == 4
    seq = bench.begin("c", [3] * 9)
    assert bench.memory.swap_bytes(seq) == 3 * 64
    bench.swap_out(seq)
    bench.plan()
    assert bench.host_pool.count(BlockState.ACTIVE) == 3
    bench.end(bench.begin("d", [4] * 16))
    bench.end(bench.begin("e", [5] * 16))
    assert bench.host_pool.count(BlockState.ACTIVE) == 3
    assert bench.host_pool.count(BlockState.CACHED) == 1


def test_an_evicted_prefix_comes_back_from_the_host():
    bench = Bench(n_blocks=5)
    bench.end(bench.begin("a", [1] * 17))
    bench.end(bench.begin("b", [2] * 17))
    again = make_seq("c", [1] * 17)
    assert bench.memory.hit_tokens(again) == 16
    hit, (table,) = bench.memory.start(again)
    assert hit == 16
    moves = bench.plan()
    assert [move.block for move in moves if move.toward is Toward.DEVICE] == list(table)
    assert bench.host.traffic.hit_tokens == 16
    bench.enter(again, hit)
    bench.end(again)


def test_what_arrives_with_a_plan_does_not_leave_with_it():
    bench = Bench(n_blocks=5)
    bench.end(bench.begin("a", [1] * 17))
    bench.end(bench.begin("b", [2] * 17))
    bench.plan()
    spilled = bench.host.traffic.spilled_blocks
    again = make_seq("c", [1] * 17)
    bench.enter(again, bench.memory.start(again)[0])
    assert again.planned_tokens == 16
    assert bench.memory.swap_bytes(again) is None
    bench.memory.release(again, 0.0, is_over=False)
    pool = bench.memory.groups[0].pool
    for block in pool.try_take(5):  # evicts what is only on its way
        pool.give_back(block, keep=False, now_s=0.0)
    out = {move.block for move in bench.plan() if move.toward is Toward.HOST}
    assert bench.host.traffic.spilled_blocks == spilled + len(out)
    assert len(out) == 4, "b's, to make room for a's, and none of a's again"


def test_the_device_part_of_a_prefix_is_not_evicted_to_make_room_for_the_rest():
    bench = Bench(n_blocks=5)
    bench.end(bench.begin("a", [1] * 17))
    bench.end(bench.begin("b", [2] * 9))  # the free block, and the two deepest of a's
    bench.end(bench.begin("c", [1] * 17))
    assert bench.memory.counters.hit_tokens == 16
    assert bench.host.traffic.hit_tokens == 8


@pytest.mark.parametrize("costs", [Costs(1e-9, 1.0)], ids=["copying is dear"])
def test_what_is_cheaper_to_compute_neither_goes_nor_comes(costs):
    bench = Bench(n_blocks=5, costs=costs)
    bench.end(bench.begin("a", [1] * 17))
    bench.end(bench.begin("b", [2] * 17))
    assert bench.host.traffic.spilled_blocks == 0
    assert bench.memory.hit_tokens(make_seq("c", [1] * 17)) == 0


def test_a_pass_that_is_cut_along_the_layers_is_not_swapped():
    bench = Bench()
    seq = bench.begin("a", [1] * 9, length=4)
    seq.plan_part(9, 1)
    assert bench.memory.swap_bytes(seq) is None


def test_who_starts_with_this_plan_is_not_swapped_by_it_unless_it_comes_back():
    bench = Bench()
    seq = make_seq("a", [1] * 9)
    bench.memory.start(seq)
    bench.enter(seq, 0)
    assert bench.memory.swap_bytes(seq) is None
    bench.plan()
    bench.compute(seq, 9)
    bench.swap_out(seq)
    bench.plan()
    bench.swap_in(seq)
    assert bench.memory.swap_bytes(seq) == 0
    bench.swap_out(seq)
    assert not [move for move in bench.plan() if move.toward is Toward.HOST]
    assert bench.swap_in(seq) is not None
    bench.plan()
    bench.end(seq)


def test_without_prefix_sharing_sequences_are_swapped_all_the_same():
    bench = Bench(n_blocks=5, share_prefixes=False)
    seq = bench.begin("a", [1] * 18)
    bench.swap_out(seq)
    assert len(bench.plan()) == 5
    bench.end(bench.begin("b", [2] * 18))
    assert bench.host.traffic.spilled_blocks == 0
    assert bench.swap_in(seq) is not None
    assert len(bench.plan()) == 5


@pytest.mark.parametrize("kinds", [("paged", "windowed"), ("paged", "recurrent"), ("windowed", "recurrent")])
def test_every_group_packs_what_the_next_token_reads(kinds):
    bench = Bench(n_blocks=16, n_host_blocks=16, kinds=kinds)
    seq = bench.begin("a", [1] * 12)
    held = [pool.held_blocks(seq) for pool in bench.memory.pools]
    bench.swap_out(seq)
    bench.plan()
    assert [host.pool.count(BlockState.ACTIVE) for host in bench.host.groups] == held
    assert bench.swap_in(seq) is not None
    bench.plan()
    assert [pool.held_blocks(seq) for pool in bench.memory.pools] == held
    bench.end(seq)


def test_audit_notices_a_host_block_that_nobody_has():
    bench = Bench()
    seq = bench.begin("a", [1] * 9)
    bench.swap_out(seq)
    bench.plan()
    bench.host._stored.clear()
    with pytest.raises(AssertionError, match="users"):
        bench.memory.audit()
