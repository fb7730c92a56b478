"""What running sequences will put into the cache for a waiting one, against a comparison of all tokens of all."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.sequence import SeqState
from tests.cache.test_memory import BLOCK_TOKENS, FAMILIES, LENGTHS, make_memory, make_seq

N_BLOCKS = 400  # nothing is evicted


class Bench:
    """Sequences that start, compute, rest, lose their memory and end."""

    def __init__(self):
        self.memory, _ = make_memory(N_BLOCKS)
        self.running, self.waiting = [], []
        self.n_made = 0

    def arrive(self, family, length):
        self.n_made += 1
        self.waiting.append(make_seq(f"r{self.n_made}", FAMILIES[family][:length]))

    def start(self, at):
        if self.waiting:
            seq = self.waiting.pop(at % len(self.waiting))
            hit, _ = self.memory.start(seq)
            seq.row = self.n_made
            seq.move(SeqState.RUNNING)
            seq.plan_to(hit)
            self.running.append(seq)

    def compute(self, at, tokens):
        able = [seq for seq in self.running if seq.state is SeqState.RUNNING and seq.prefill_left_tokens]
        if able:
            seq = able[at % len(able)]
            stop = min(seq.total_tokens, seq.planned_tokens + tokens)
            assert self.memory.try_grow(seq, stop) is not None
            seq.plan_to(stop)
            self.memory.note_written(seq)

    def pause_or_wake(self, at):
        if self.running:
            seq = self.running[at % len(self.running)]
            seq.move(SeqState.PAUSED if seq.state is SeqState.RUNNING else SeqState.RUNNING)

    def give_up(self, at, is_over):
        if self.running:
            seq = self.running.pop(at % len(self.running))
            self.memory.release(seq, 0.0, is_over=is_over)
            if is_over:
                seq.move(SeqState.ABORTED)
                self.memory.forget(seq)
            else:
                seq.rewind()
                seq.move(SeqState.WAITING)
                self.waiting.append(seq)

    def candidates(self, seq):
        """What each running sequence would leave for this one, beyond what it finds now."""
        hit = self.memory.hit_tokens(seq)
        most = (seq.total_tokens - 1) // BLOCK_TOKENS
        for other in self.running:
            pairs = zip(seq.tokens, other.tokens, strict=False)
            same = next((k for k, (a, b) in enumerate(pairs) if a != b), min(seq.total_tokens, other.total_tokens))
            blocks = min(same // BLOCK_TOKENS, most)
            if other.state is SeqState.RUNNING and blocks * BLOCK_TOKENS > max(hit, other.planned_tokens):
                yield blocks * BLOCK_TOKENS

    def check(self):
        for seq in self.waiting:
            coming, wanted = self.memory.coming_tokens(seq), set(self.candidates(seq))
            assert coming == self.memory.coming_tokens(seq)
            assert coming in wanted or not (coming or wanted), (seq, coming, wanted)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(0, len(FAMILIES) - 1), st.sampled_from(LENGTHS)),
        st.tuples(st.just("start"), st.integers(0, 9)),
        st.tuples(st.just("compute"), st.integers(0, 9), st.sampled_from([1, 3, 4, 8, 15])),
        st.tuples(st.just("pause_or_wake"), st.integers(0, 9)),
        st.tuples(st.just("give_up"), st.integers(0, 9), st.booleans()),
    ),
    min_size=4,
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(actions=actions)
def test_what_is_said_to_be_coming_is_what_a_running_one_shares_and_has_not_computed(actions):
    bench = Bench()
    for name, *arguments in actions:
        getattr(bench, name)(*arguments)
        bench.check()


def test_the_tokens_that_come_are_found_when_they_are_there():
    bench = Bench()
    bench.arrive(0, 33)
    bench.arrive(1, 33)  # shares 9 tokens: two blocks
    bench.start(0)
    (late,) = bench.waiting
    assert bench.memory.coming_tokens(late) == 8
    bench.compute(0, 4)
    assert (bench.memory.coming_tokens(late), bench.memory.hit_tokens(late)) == (8, 4)
    bench.compute(0, 4)
    assert (bench.memory.coming_tokens(late), bench.memory.hit_tokens(late)) == (0, 8)
