"""The block pool: whatever is asked of it in whatever order, every block is in exactly one state."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.cache.blocks import NEXT, BlockPool, BlockState
from penstock.core.errors import IllegalTransition
from penstock.policy.retain import RETAIN
from penstock.policy.retain.lru import LeastRecentlyUsed

B = BlockState


class BlockPoolMachine(RuleBasedStateMachine):
    """The pool against a dict: block -> the state it must be in, and its number of users.

    `findable` stands for a prefix index: blocks whose content can be found. A block leaves it only by `on_evict`, or
    because the owner of the content said that it need not be kept.
    """

    @initialize(n_blocks=st.integers(1, 9), retain=st.sampled_from(sorted(RETAIN)))
    def make(self, n_blocks, retain):
        self.evicted: list[int] = []
        self.saved: list[int] = []
        self.pool = BlockPool(n_blocks, RETAIN[retain](), self.evicted.extend)
        self.pool.save = self.saved.append
        self.states = dict.fromkeys(range(n_blocks), B.FREE)
        self.users = dict.fromkeys(range(n_blocks), 0)
        self.pins: dict[int, float] = {}
        self.now_s = 0.0

    def those_in(self, *states):
        return [block for block, state in self.states.items() if state in states]

    def pick(self, data, *states):
        return data.draw(st.sampled_from(self.those_in(*states)))

    @rule(n=st.integers(0, 10))
    def take(self, n):
        before, was_cached, was_moving = self.seen(), self.those_in(B.CACHED), self.those_in(B.MOVING)
        n_free = len(self.those_in(B.FREE))
        can = len(self.those_in(B.FREE, B.MOVING, B.CACHED))
        assert self.pool.available == can
        self.evicted.clear()
        self.saved.clear()
        taken = self.pool.try_take(n)
        assert (taken is not None) == (n <= can), "try_take must succeed just when that many blocks are available"
        if taken is None:
            assert self.seen() == before
            assert not self.evicted
            return
        assert len(set(taken)) == n
        for block in taken:
            was = self.states[block]
            assert was in (B.FREE, B.MOVING, B.CACHED), f"block {block} was {was.value}"
            self.states[block], self.users[block] = B.ACTIVE, 1
        assert sorted(self.evicted) == sorted(set(taken) & set(was_cached)), "evictions and lost content differ"
        assert self.saved == self.evicted, "what is lost could not be saved before"
        n_moving = len(set(taken) & set(was_moving))
        assert n_moving == min(max(0, n - n_free), len(was_moving)), "free blocks first, then those under way"

    @precondition(lambda self: self.those_in(B.ACTIVE, B.CACHED, B.PINNED))
    @rule(data=st.data())
    def share(self, data):
        block = self.pick(data, B.ACTIVE, B.CACHED, B.PINNED)
        self.pool.share(block)
        self.states[block] = B.ACTIVE
        self.users[block] += 1
        self.pins.pop(block, None)

    @precondition(lambda self: self.those_in(B.ACTIVE))
    @rule(data=st.data(), keep=st.booleans(), pin_s=st.none() | st.integers(-1, 4))
    def give_back(self, data, keep, pin_s):
        block = self.pick(data, B.ACTIVE)
        until_s = None if pin_s is None else self.now_s + pin_s
        self.pool.give_back(block, keep=keep, now_s=self.now_s, pin_until_s=until_s)
        self.users[block] -= 1
        if self.users[block]:
            return
        if not keep:
            self.states[block] = B.FREE
        elif until_s is not None and until_s > self.now_s:
            self.states[block], self.pins[block] = B.PINNED, until_s
        else:
            self.states[block] = B.CACHED

    @rule(by_s=st.integers(0, 3))
    def time_passes(self, by_s):
        self.now_s += by_s
        self.pool.expire_pins(self.now_s)
        for block in [block for block, until_s in self.pins.items() if until_s <= self.now_s]:
            del self.pins[block]
            self.states[block] = B.CACHED

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data):
        block = self.pick(data, B.PINNED)
        self.pool.unpin(block, self.now_s)
        del self.pins[block]
        self.states[block] = B.CACHED

    @precondition(lambda self: self.those_in(B.FREE, B.CACHED, B.MOVING))
    @rule(data=st.data())
    def move_through_the_tiers(self, data):
        """Any legal move of a block that nobody uses; active ones come and go with their users only."""
        block = self.pick(data, B.FREE, B.CACHED, B.MOVING)
        at = self.states[block]
        to = data.draw(st.sampled_from(sorted(NEXT[at] - {B.ACTIVE, B.PINNED}, key=lambda state: state.value)))
        self.evicted.clear()
        self.pool.move(block, to, self.now_s)
        assert self.evicted == ([block] if (at, to) == (B.CACHED, B.FREE) else [])
        self.states[block] = to
        self.pins.pop(block, None)

    @rule(data=st.data(), to=st.sampled_from(B))
    def an_illegal_move_changes_nothing(self, data, to):
        block = self.pick(data, *B)
        if to in NEXT[self.states[block]]:
            return
        before = self.seen()
        with pytest.raises(IllegalTransition, match=f"block {block}: {self.states[block].value} -> {to.value}"):
            self.pool.move(block, to, self.now_s)
        assert self.seen() == before

    def seen(self):
        pool = self.pool
        blocks = range(pool.n_blocks)
        return [pool.state(b) for b in blocks], [pool.users(b) for b in blocks], [pool.count(s) for s in B]

    @invariant()
    def every_block_is_in_exactly_one_state(self):
        assert sum(self.pool.count(state) for state in B) == self.pool.n_blocks

    @invariant()
    def the_pool_agrees_with_the_model(self):
        states, users, counts = self.seen()
        assert states == list(self.states.values())
        assert users == list(self.users.values())
        assert counts == [len(self.those_in(state)) for state in B]

    @invariant()
    def conservation_holds(self):
        most = max(self.users.values())
        self.pool.audit([block for block, users in self.users.items() if users > k] for k in range(most))


BlockPoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBlockPool = BlockPoolMachine.TestCase


def pool_of(n_blocks=4):
    evicted = []
    return BlockPool(n_blocks, LeastRecentlyUsed(), evicted.extend), evicted


def test_the_least_recently_used_block_is_evicted_first():
    pool, evicted = pool_of()
    blocks = pool.try_take(4)
    for block in (2, 0, 3, 1):
        pool.give_back(blocks[block], keep=True, now_s=0.0)
    pool.share(blocks[2])
    pool.give_back(blocks[2], keep=True, now_s=1.0)
    for _ in range(4):
        pool.try_take(1)
    assert evicted == [blocks[0], blocks[3], blocks[1], blocks[2]]


def test_a_pinned_block_is_not_taken_before_its_time():
    pool, evicted = pool_of(1)
    (block,) = pool.try_take(1)
    pool.give_back(block, keep=True, now_s=0.0, pin_until_s=5.0)
    pool.expire_pins(4.999)
    assert pool.try_take(1) is None
    pool.expire_pins(5.0)
    assert pool.try_take(1) == (block,)
    assert evicted == [block]


def test_a_block_pinned_again_keeps_the_later_time():
    pool, _ = pool_of(1)
    (block,) = pool.try_take(1)
    pool.give_back(block, keep=True, now_s=0.0, pin_until_s=5.0)
    pool.share(block)
    pool.give_back(block, keep=True, now_s=1.0, pin_until_s=9.0)
    pool.expire_pins(5.0)
    assert pool.state(block) is B.PINNED
    pool.expire_pins(9.0)
    assert pool.state(block) is B.CACHED


def test_free_blocks_are_used_before_cached_ones():
    pool, evicted = pool_of(2)
    first, second = pool.try_take(2)
    pool.give_back(first, keep=True, now_s=0.0)
    pool.give_back(second, keep=False, now_s=0.0)
    assert pool.try_take(1) == (second,)
    assert not evicted


def test_a_block_whose_content_is_still_being_copied_away_is_handed_out_last():
    pool, _ = pool_of(3)
    pool.move(0, B.MOVING, 0.0)
    (cached,) = pool.try_take(1)
    pool.give_back(cached, keep=True, now_s=0.0)
    assert pool.try_take(2) == (2, 0), "before anything that can be found is evicted"


def test_a_block_whose_copy_has_landed_is_free_like_any_other():
    pool, _ = pool_of(2)
    pool.move(1, B.MOVING, 0.0)
    pool.move(1, B.FREE, 1.0)
    assert pool.try_take(2) == (0, 1)


def test_giving_back_a_block_without_user_is_our_mistake():
    pool, _ = pool_of()
    with pytest.raises(AssertionError, match="block 0 has no user"):
        pool.give_back(0, keep=True, now_s=0.0)


@pytest.mark.parametrize("break_it", ["user", "count", "free list"])
def test_audit_notices_what_is_off(break_it):
    pool, _ = pool_of()
    taken = pool.try_take(2)
    if break_it == "user":
        taken = taken[:1]
    elif break_it == "count":
        pool._counts[B.FREE] += 1
    else:
        pool._free.pop(next(iter(pool._free)))
    with pytest.raises(AssertionError):
        pool.audit([taken])
