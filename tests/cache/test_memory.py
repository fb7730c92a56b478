"""Memory with one paged group against plain dicts: what each block holds, who has it, what a hit must find."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.cache.groups import PagedGroup
from penstock.cache.memory import Memory
from penstock.core.executor import StateKind, StateSpec
from penstock.core.request import Request, SamplingParams
from penstock.core.sequence import SeqState, Sequence
from penstock.policy.retain.lru import LeastRecentlyUsed

BLOCK_TOKENS = 4
SPEC = StateSpec(name="kv", kind=StateKind.PAGED, layers=(0,), block_tokens=BLOCK_TOKENS, block_bytes=64)

FAMILIES = [[0] * 40, [0] * 9 + [1] * 31, [1] * 40]  # so that prefixes are shared
LENGTHS = [1, 4, 5, 8, 9, 12, 13, 16, 17, 18, 24, 25, 33]  # around multiples of the block


def make_memory(n_blocks: int, **options: bool) -> tuple[Memory, PagedGroup]:
    group = PagedGroup(SPEC, n_blocks, LeastRecentlyUsed())
    return Memory((group,), BLOCK_TOKENS, **options), group


def make_seq(name: str, prompt: list[int], salt: str = "", **sampling: int) -> Sequence:
    request = Request(id=name, prompt=prompt, cache_salt=salt, sampling=SamplingParams(**sampling))  # type: ignore[arg-type]
    return Sequence(request, 0, 100)


class MemoryMachine(RuleBasedStateMachine):
    """Sequences start, grow, fork, compute and end; `content` says what a device would have in each slot by now."""

    @initialize(n_blocks=st.integers(3, 30))
    def make(self, n_blocks):
        self.memory, self.group = make_memory(n_blocks)
        (self.pool,) = self.memory.pools
        self.n_blocks = n_blocks
        self.content: dict[tuple[int, int], tuple[str, tuple[int, ...]]] = {}  # slot -> salt, tokens up to it
        self.tables: dict[str, list[int]] = {}
        self.seqs: dict[str, Sequence] = {}
        self.waiting: dict[str, Sequence] = {}
        self.n_rows = self.n_seqs = 0
        self.now_s = 0.0

    def pick(self, data):
        return self.seqs[data.draw(st.sampled_from(sorted(self.seqs)))]

    def enter(self, seq, table, planned):
        self.n_rows += 1
        seq.row = self.n_rows
        seq.move(SeqState.RUNNING)
        seq.plan_to(planned)
        self.seqs[seq.id] = seq
        self.tables[seq.id] = list(table)
        for position in range(planned):
            slot = (table[position // BLOCK_TOKENS], position % BLOCK_TOKENS)
            wanted = (seq.request.cache_salt, tuple(seq.tokens[: position + 1]))
            assert self.content.get(slot) == wanted, f"{seq}: position {position} is not what the cache said"

    @precondition(lambda self: len(self.seqs) < 4)
    @rule(
        family=st.sampled_from(FAMILIES),
        length=st.sampled_from(LENGTHS),
        salt=st.sampled_from(["", "", "", "x"]),
    )
    def arrive(self, family, length, salt):
        self.n_seqs += 1
        seq = make_seq(f"r{self.n_seqs}", family[:length], salt)
        self.begin(seq)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def come_back(self, data):
        self.begin(self.waiting.pop(data.draw(st.sampled_from(sorted(self.waiting)))))

    def begin(self, seq):
        said = self.memory.hit_tokens(seq)
        findable = self.findable()
        hit, (table,) = self.memory.start(seq)
        assert hit == said == len(table) * BLOCK_TOKENS
        assert hit < len(seq.tokens), "one token at least must be computed, for its logits"
        best = 0
        while best + BLOCK_TOKENS < len(seq.tokens):
            if (seq.request.cache_salt, tuple(seq.tokens[: best + BLOCK_TOKENS])) not in findable:
                break
            best += BLOCK_TOKENS
        assert hit == best, "the hit is not the longest one"
        self.enter(seq, table, hit)

    @precondition(lambda self: self.seqs)
    @rule(data=st.data(), ahead=st.sampled_from([0, 1, 3, 8, 8, 20]))
    def advance(self, data, ahead):
        """Make room, and compute what is known; behind the last known token comes an output."""
        seq = self.pick(data)
        to_tokens = min(seq.planned_tokens + ahead, len(seq.tokens))
        if self.grow(seq, to_tokens + data.draw(st.integers(0, 5))):
            self.compute(seq, to_tokens)

    def grow(self, seq, to_tokens):
        table, before = self.tables[seq.id], self.seen()
        missing = max(0, -(-to_tokens // BLOCK_TOKENS) - len(table))
        change = self.memory.try_grow(seq, to_tokens)
        assert (change is not None) == (missing <= before[0])
        if change is None:
            assert self.seen() == before
            return False
        for grow in change.grows:
            assert (grow.row, grow.group, grow.at) == (seq.row, 0, len(table))
            table.extend(grow.blocks)
        assert not change.copies
        assert len(table) * BLOCK_TOKENS >= to_tokens
        assert self.memory.capacity_tokens(seq) == len(table) * BLOCK_TOKENS
        return True

    def compute(self, seq, stop):
        table = self.tables[seq.id]
        for position in range(seq.planned_tokens, stop):
            block = table[position // BLOCK_TOKENS]
            assert sum(block in other for other in self.tables.values()) == 1, "a write into a shared block"
            self.content[block, position % BLOCK_TOKENS] = (seq.request.cache_salt, tuple(seq.tokens[: position + 1]))
        seq.plan_to(stop)
        self.memory.note_written(seq)
        if stop == len(seq.tokens):
            seq.tokens.append(seq.tokens[0])

    @precondition(lambda self: any(seq.planned_tokens > BLOCK_TOKENS for seq in self.seqs.values()))
    @rule(data=st.data())
    def fork(self, data):
        parents = sorted(name for name, seq in self.seqs.items() if seq.planned_tokens > BLOCK_TOKENS)
        parent = self.seqs[data.draw(st.sampled_from(parents))]
        tokens = data.draw(st.integers(0, parent.planned_tokens - 1))
        self.n_seqs += 1
        child = make_seq(f"r{self.n_seqs}", list(parent.tokens[: tokens + 1]), parent.request.cache_salt)
        before = self.seen()
        fork = self.memory.try_fork(parent, child, tokens)
        assert (fork is not None) == (before[0] >= (tokens % BLOCK_TOKENS > 0))
        if fork is None:
            assert self.seen() == before
            return
        assert fork.tokens == tokens
        for copy in fork.copies:
            for offset in range(BLOCK_TOKENS):
                self.content[copy.target, offset] = self.content.get((copy.source, offset), ("", ()))
        self.enter(child, fork.tables[0], tokens)

    @precondition(lambda self: self.seqs)
    @rule(data=st.data(), is_over=st.booleans())
    def release(self, data, is_over):
        seq = self.pick(data)
        del self.seqs[seq.id], self.tables[seq.id]
        self.memory.release(seq, self.now_s, is_over=is_over)
        assert self.pool.held_blocks(seq) == 0
        if is_over:
            self.memory.forget(seq)
        else:  # preempted: it computes everything again, with the outputs that it has
            seq.rewind()
            seq.row = None
            seq.move(SeqState.WAITING)
            self.waiting[seq.id] = seq

    def seen(self):
        pool = self.group.pool
        return (
            self.pool.available_blocks,
            [(pool.state(block), pool.users(block), self.group.index.knows(block)) for block in range(self.n_blocks)],
        )

    def findable(self):
        """The contents of whole blocks that the index must find, by salt and all tokens up to their end."""
        last = {block: self.content.get((block, BLOCK_TOKENS - 1)) for block in range(self.n_blocks)}
        return {last[block] for block in range(self.n_blocks) if self.group.index.knows(block)}

    @invariant()
    def conservation_holds(self):
        self.memory.audit()

    @invariant()
    def blocks_are_held_by_those_who_have_them(self):
        held = set().union(*self.tables.values()) if self.tables else set()
        assert self.pool.available_blocks == self.n_blocks - len(held)
        for name, seq in self.seqs.items():
            assert self.pool.held_blocks(seq) == len(self.tables[name])

    @invariant()
    def a_waiting_sequence_hits_only_what_it_would_compute(self):
        for seq in self.waiting.values():
            hit = self.memory.hit_tokens(seq)
            assert hit % BLOCK_TOKENS == 0
            assert 0 <= hit < len(seq.tokens)


MemoryMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestMemory = MemoryMachine.TestCase


def run_once(memory: Memory, seq: Sequence) -> None:
    """A sequence computes its prompt and ends."""
    hit, _ = memory.start(seq)
    seq.row = 0
    seq.move(SeqState.RUNNING)
    assert memory.try_grow(seq, len(seq.tokens)) is not None
    seq.plan_to(hit)
    seq.plan_to(len(seq.tokens))
    memory.release(seq, 0.0, is_over=True)
    memory.forget(seq)


def test_the_deepest_block_of_a_prefix_is_evicted_first():
    memory, _ = make_memory(4)
    run_once(memory, make_seq("a", [1] * 12))
    run_once(memory, make_seq("b", [2] * 5))  # takes the free block and evicts one
    assert memory.hit_tokens(make_seq("c", [1] * 12 + [3])) == 8


def test_without_sharing_nothing_is_found():
    memory, group = make_memory(4, share_prefixes=False)
    run_once(memory, make_seq("a", [1] * 12))
    assert memory.hit_tokens(make_seq("b", [1] * 12)) == 0
    assert len(group.index) == 0


def test_prompt_logprobs_need_every_token_computed():
    memory, _ = make_memory(4)
    run_once(memory, make_seq("a", [1] * 12))
    assert memory.hit_tokens(make_seq("b", [1] * 12)) == 8
    assert memory.hit_tokens(make_seq("c", [1] * 12, prompt_logprobs=1)) == 0


def test_hits_are_counted():
    memory, _ = make_memory(4)
    for name in "ab":
        run_once(memory, make_seq(name, [1] * 12))
    assert (memory.counters.queried_tokens, memory.counters.hit_tokens) == (24, 8)
