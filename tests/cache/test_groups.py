"""Memory over groups of several kinds: a hit suits all of them, and what one cannot do, none does."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.cache.groups import PagedGroup
from penstock.cache.memory import Memory
from penstock.cache.windowed import WindowedGroup
from penstock.core.sequence import SeqState
from penstock.core.view import Admission
from penstock.policy.admit.watermark import Watermark
from penstock.policy.retain.lru import LeastRecentlyUsed
from tests.cache.test_memory import FAMILIES, LENGTHS, make_seq
from tests.cache.toy_groups import (
    KEY_TOKENS,
    PAGED,
    RECURRENT,
    WINDOWED,
    RecurrentGroup,
    states_of,
    store_of,
)
from tests.policy.views import make_view

KINDS = {
    "paged": lambda n: PagedGroup(PAGED, n, LeastRecentlyUsed()),
    "windowed": lambda n: WindowedGroup(WINDOWED, n, LeastRecentlyUsed()),
    "recurrent": lambda n: RecurrentGroup(RECURRENT, n, LeastRecentlyUsed(), KEY_TOKENS),
}


def make_memory(kinds, n_blocks):
    groups = tuple(KINDS[kind](n) for kind, n in zip(kinds, n_blocks, strict=True))
    return Memory(groups, KEY_TOKENS)


class GroupsMachine(RuleBasedStateMachine):
    """Sequences start, grow, compute, fork and end; each group's device says whether it has what is read."""

    memory = None

    @initialize(
        kinds=st.sampled_from(
            [("windowed",), ("recurrent",), ("paged", "recurrent"), ("windowed", "paged"), tuple(KINDS)]
        ),
        data=st.data(),
    )
    def make(self, kinds, data):
        n_blocks = [data.draw(st.integers(4, 30)) for _ in kinds]
        self.memory = make_memory(kinds, n_blocks)
        self.stores = [store_of(group.spec) for group in self.memory.groups]
        self.tables: dict[str, list[list[int]]] = {}
        self.room: dict[str, int] = {}
        self.seqs = {}
        self.waiting = {}
        self.n_seqs = 0

    def seen(self):
        return [
            (
                [(group.pool.state(block), group.pool.users(block)) for block in range(group.pool.n_blocks)],
                [group.index.knows(block) for block in range(group.pool.n_blocks)],
                {name: group.held_blocks(name) for name in self.seqs},
            )
            for group in self.memory.groups
        ]

    def pick(self, data, seqs):
        return seqs[data.draw(st.sampled_from(sorted(seqs)))]

    def check_content(self, seq):
        states = states_of(seq.tokens, seq.request.cache_salt)
        for store, table in zip(self.stores, self.tables[seq.id], strict=True):
            store.check(table, states, seq.planned_tokens)

    def enter(self, seq, tables, tokens):
        seq.row = self.n_seqs
        seq.move(SeqState.RUNNING)
        seq.plan_to(tokens)
        self.seqs[seq.id] = seq
        self.tables[seq.id] = [list(table) for table in tables]
        self.room[seq.id] = tokens
        self.check_content(seq)

    def obey(self, seq, change):
        """What the device does with a change: tables first, then copies."""
        for grow in change.grows:
            table = self.tables[seq.id][grow.group]
            assert grow.at <= len(table)
            table[grow.at : grow.at + len(grow.blocks)] = grow.blocks
        for copy in change.copies:
            self.stores[copy.group].copy(copy.source, copy.target)

    @precondition(lambda self: len(self.seqs) < 4)
    @rule(
        family=st.sampled_from(FAMILIES),
        length=st.sampled_from(LENGTHS),
        salt=st.sampled_from(["", "", "", "x"]),
    )
    def arrive(self, family, length, salt):
        self.n_seqs += 1
        self.begin(make_seq(f"r{self.n_seqs}", family[:length], salt))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def come_back(self, data):
        self.begin(self.waiting.pop(data.draw(st.sampled_from(sorted(self.waiting)))))

    def begin(self, seq):
        chain = self.memory._chain(seq)
        suits_all = [
            n
            for n in range(len(seq.tokens))
            if all(group.longest_hit(chain, n, group.index.has) == n for group in self.memory.groups)
        ]  # fmt: skip
        hit, tables = self.memory.start(seq)
        assert hit == max(suits_all), "the hit is not the longest that suits every group"
        self.enter(seq, tables, hit)

    @precondition(lambda self: self.seqs)
    @rule(data=st.data(), ahead=st.sampled_from([0, 1, 3, 8, 8, 20]))
    def advance(self, data, ahead):
        """Make room, and compute what is known; behind the last known token comes an output."""
        seq = self.pick(data, self.seqs)
        to_tokens = min(seq.planned_tokens + min(ahead, self.memory.chunk_tokens or ahead), len(seq.tokens))
        if self.grow(seq, to_tokens):
            self.compute(seq, to_tokens)

    def grow(self, seq, to_tokens):
        self.memory.trim(seq)
        self.check_content(seq)
        before = self.seen()
        short = [
            group for group in self.memory.groups if group.missing_blocks(seq.id, to_tokens) > group.pool.available
        ]
        change = self.memory.try_grow(seq, to_tokens)
        assert (change is None) == bool(short)
        if change is None:
            assert self.seen() == before, "one group was short, and another changed"
            return False
        self.obey(seq, change)
        self.room[seq.id] = max(self.room[seq.id], to_tokens)
        assert self.memory.capacity_tokens(seq) >= to_tokens
        assert all(group.missing_blocks(seq.id, to_tokens) == 0 for group in self.memory.groups)
        self.check_content(seq)

        return True

    def compute(self, seq, stop):
        if stop > seq.planned_tokens:
            self.check_content(seq)
            states = states_of(seq.tokens, seq.request.cache_salt)
            for store, table in zip(self.stores, self.tables[seq.id], strict=True):
                store.write(table, states, seq.planned_tokens, stop)
            seq.plan_to(stop)
            self.memory.note_written(seq)
            for other in self.seqs.values():
                self.check_content(other)
        if stop == len(seq.tokens):
            seq.tokens.append(seq.tokens[0])

    @precondition(lambda self: any(seq.planned_tokens > 8 for seq in self.seqs.values()))
    @rule(data=st.data())
    def fork(self, data):
        parent = self.pick(data, {name: seq for name, seq in self.seqs.items() if seq.planned_tokens > 8})
        limit = parent.planned_tokens - data.draw(st.integers(1, 6))
        self.n_seqs += 1
        child = make_seq(f"r{self.n_seqs}", list(parent.tokens[: limit + 1]), parent.request.cache_salt)
        before = self.seen()
        tokens = self.memory.fork_tokens(parent, limit)
        assert tokens <= limit
        fork = self.memory.try_fork(parent, child, tokens)
        if fork is None:
            assert self.seen() == before, "one group was short, and another changed"
            return
        for copy in fork.copies:
            self.stores[copy.group].copy(copy.source, copy.target)
        self.enter(child, fork.tables, fork.tokens)
        self.check_content(parent)

    @precondition(lambda self: self.seqs)
    @rule(data=st.data(), is_over=st.booleans())
    def release(self, data, is_over):
        seq = self.pick(data, self.seqs)
        del self.seqs[seq.id], self.tables[seq.id], self.room[seq.id]
        self.memory.release(seq, 0.0, is_over=is_over)
        assert all(pool.held_blocks(seq) == 0 for pool in self.memory.pools)
        if is_over:
            self.memory.forget(seq)
        else:
            seq.rewind()
            seq.row = None
            seq.move(SeqState.WAITING)
            self.waiting[seq.id] = seq

    @invariant()
    def conservation_holds(self):
        self.memory.audit()

    @invariant()
    def nobody_holds_more_than_his_length_needs(self):
        for name, seq in self.seqs.items():
            most = max(self.room[name], seq.planned_tokens)
            for group in self.memory.groups:
                spare = 1  # a shared checkpoint, until the sequence has its own state
                assert group.held_blocks(name) <= group.blocks_for(most) + spare

    def teardown(self):
        if self.memory is None:
            return
        for seq in self.seqs.values():
            self.memory.release(seq, 0.0, is_over=True)
        for group in self.memory.groups:
            assert group.pool.available == group.pool.n_blocks, "a block is lost"


GroupsMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestGroups = GroupsMachine.TestCase


def run_once(memory, seq):
    seq.row = 0
    hit, _ = memory.start(seq)
    seq.move(SeqState.RUNNING)
    assert memory.try_grow(seq, len(seq.tokens)) is not None
    seq.plan_to(hit)
    seq.plan_to(len(seq.tokens))
    memory.release(seq, 0.0, is_over=True)


def test_a_hit_is_the_longest_that_suits_every_group():
    for kinds, wanted in (
        (("paged",), 20),
        (("paged", "recurrent"), 16),  # the last checkpoint
        (("windowed",), 20),
        (("paged", "windowed", "recurrent"), 16),  # what lies behind a window stays cached until it is evicted
    ):
        memory = make_memory(kinds, [16] * len(kinds))
        run_once(memory, make_seq("a", [1] * 23))
        assert memory.hit_tokens(make_seq("b", [1] * 23)) == wanted, kinds


def test_one_group_that_is_short_keeps_the_others_as_they_are():
    """The fork would take a block of the paged group, and thereby evict one; the windowed group has none."""
    memory = make_memory(("paged", "windowed"), (4, 2))
    run_once(memory, make_seq("cached", [7] * 8))
    parent, child = make_seq("p", [1] * 6), make_seq("c", [1] * 6)
    parent.row = 0
    memory.start(parent)
    assert memory.try_grow(parent, 6) is not None
    parent.plan_to(6)
    assert memory.try_fork(parent, child, 5) is None
    assert memory.groups[0].pool.available == 2
    assert memory.hit_tokens(make_seq("again", [7] * 9)) == 0  # the windowed group lost it before, not now
    assert sum(memory.groups[0].index.knows(block) for block in range(4)) == 2


def test_two_that_share_a_window_leave_it_behind_one_after_the_other():
    machine = GroupsMachine()
    machine.memory = make_memory(("windowed",), [12])
    machine.stores, machine.tables, machine.room = [store_of(WINDOWED)], {}, {}
    machine.seqs, machine.waiting, machine.n_seqs = {}, {}, 1
    parent, child = make_seq("p", [1] * 20), make_seq("c", [1] * 40)
    machine.begin(parent)
    for stop in (12, 20):
        assert machine.grow(parent, stop)
        machine.compute(parent, stop)
    fork = machine.memory.try_fork(parent, child, machine.memory.fork_tokens(parent, 18))
    assert fork.tokens == 18
    for copy in fork.copies:
        machine.stores[0].copy(copy.source, copy.target)
    machine.enter(child, fork.tables, fork.tokens)
    assert machine.grow(child, 28)
    machine.compute(child, 28)
    machine.check_content(parent)
    machine.memory.trim(child)
    assert machine.memory.groups[0].held_blocks("c.0") == 3  # sinks, and positions 23 to 27


def test_a_sequence_holds_sinks_and_window_however_long_it_is():
    memory = make_memory(("windowed",), [9])
    seq = make_seq("a", [1] * 400)
    seq.row = 0
    memory.start(seq)
    held = []
    for stop in range(1, 401):
        memory.trim(seq)
        assert memory.try_grow(seq, stop) is not None
        seq.plan_to(stop)
        held.append(memory.groups[0].held_blocks("a.0"))
    assert max(held) == WINDOWED.decoding_blocks_for(400) == 4
    memory.release(seq, 0.0, is_over=True)
    assert memory.groups[0].pool.available == 9


def test_a_pool_smaller_than_the_window_holds_what_fits():
    memory = make_memory(("windowed",), [2])
    assert memory.fits_ever(8)
    assert not memory.fits_ever(9)


def test_a_small_pool_bounds_the_chunks_of_its_sequences():
    memory = make_memory(("windowed",), [5])
    assert (
        memory.chunk_tokens == 7
    )  # beside 2 sinks in a block: 5 tokens of the window and 7 more, anywhere in 4 blocks
    assert memory.fits_ever(10_000)


def test_what_fits_every_group_may_start():
    """20 tokens need 6 of 40 paged blocks and 3 of 4 states; the groups' blocks are not compared with each other."""
    memory = make_memory(("paged", "recurrent"), (40, 4))
    seq = make_seq("a", [1] * 20)
    assert memory.fits_ever(21)
    assert Watermark().admit(seq, make_view(waiting=[seq], memory=memory)) is Admission.START
