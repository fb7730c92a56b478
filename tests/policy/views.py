"""Random views: what a policy may be shown, with real sequences and a memory of plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hypothesis import strategies as st

from penstock.core.plan import DecodeGroup, Plan
from penstock.core.request import Objective, Request, SamplingParams
from penstock.core.sequence import SeqState, Sequence, SequenceView, StepCounter
from penstock.core.view import Estimate, PoolView, View
from penstock.policy.predict.max_tokens import MaxTokens

N_LAYERS = 4
CATEGORIES = ["", "chat", "code"]


@dataclass(frozen=True)
class Costs:
    """A CostView that was told everything."""

    token_s: float = 1e-3
    byte_s: float = 1e-9

    def prefill_s(self, tokens: int) -> float:
        return tokens * self.token_s

    def move_s(self, n_bytes: int) -> float:
        return n_bytes * self.byte_s

    def step(self, plan: Plan) -> Estimate | None:
        return None


@dataclass(frozen=True)
class Blocks:
    """A MemoryView of one pool that was told everything; it is its own pool."""

    block_tokens: int = 4
    total_blocks: int = 64
    available_blocks: int = 64
    held: Mapping[str, int] = field(default_factory=dict)
    hits: Mapping[str, int] = field(default_factory=dict)
    swaps: Mapping[str, int] = field(default_factory=dict)
    coming: Mapping[str, int] = field(default_factory=dict)

    @property
    def pools(self) -> tuple[PoolView, ...]:
        return (self,)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def swap_bytes(self, seq: SequenceView) -> int | None:
        return self.swaps.get(seq.id)

    def hit_tokens(self, seq: SequenceView) -> int:
        return self.hits.get(seq.id, 0)

    def coming_tokens(self, seq: SequenceView) -> int:
        return self.coming.get(seq.id, 0)

    def held_blocks(self, seq: SequenceView) -> int:
        return self.held.get(seq.id, 0)


def make_view(
    waiting=(), prefilling=(), decoding=(), paused=(), memory=None, now_s=0.0, lengths=None, costs=None, following=()
) -> View:
    """A view of these sequences; rows are theirs already."""
    return View(
        now_s=now_s,
        waiting=(*waiting, *paused),
        prefilling=tuple(prefilling),
        decoding=DecodeGroup(tuple(seq.row for seq in decoding), 1),
        running=(*prefilling, *decoding, *paused),
        memory=memory or Blocks(),
        lengths=lengths or MaxTokens(),
        costs=costs or Costs(),
        n_layers=N_LAYERS,
        max_rows=16,
        following=tuple(following),
    )


def make_seq(name, prompt_tokens=4, outputs=0, limit=16, row=None, planned=0, **fields) -> Sequence:
    """A sequence with `outputs` tokens put out; one with a row runs."""
    request = Request(id=name, prompt=[1] * prompt_tokens, sampling=SamplingParams(max_tokens=limit), **fields)
    seq = Sequence(request, 0, limit)
    seq.tokens.extend([2] * outputs)
    if row is not None:
        seq.row = row
        seq.move(SeqState.RUNNING)
    seq.plan_to(planned)
    return seq


def lengths_around(block_tokens: int, least: int = 0) -> st.SearchStrategy[int]:
    """Around 0, 1 and multiples of the block, and now and then far away."""
    near = [k * block_tokens + d for k in (0, 1, 2, 5) for d in (-1, 0, 1)] + [1]
    return st.sampled_from(sorted({n for n in near if n >= least})) | st.integers(least, 3000)


objectives = st.builds(
    Objective,
    ttft_s=st.none() | st.floats(0.01, 100),
    tpot_s=st.none() | st.floats(0.001, 1),
    deadline_s=st.none() | st.floats(0.1, 1000),
    weight=st.floats(0.1, 10),
)


@st.composite
def views(draw, max_each: int = 4, cut_passes: bool = False) -> View:
    """Sequences in every state; `cut_passes`: some prompts stopped between two layers."""
    block_tokens = draw(st.sampled_from([1, 4, 16]))
    now_s = draw(st.floats(0, 1e5))
    names = iter(range(100))
    rows = iter(draw(st.permutations(range(16))))
    held, hits, swaps, coming = {}, {}, {}, {}
    lengths = lengths_around(block_tokens, least=1)

    def some(kind):
        return [kind() for _ in range(draw(st.integers(0, max_each)))]

    def seq(has_row):
        limit = draw(st.integers(1, 3000))
        made = make_seq(
            f"r{next(names)}",
            draw(lengths),
            outputs=draw(st.integers(0, limit - 1)) if draw(st.booleans()) else 0,
            limit=limit,
            row=next(rows) if has_row else None,
            arrival_s=now_s - draw(st.floats(0, 200)),
            objective=draw(objectives),
            priority=draw(st.integers(-2, 2)),
            category=draw(st.sampled_from(CATEGORIES)),
        )
        made.epoch = draw(st.integers(0, 2))
        return made

    def waiting():
        made = seq(has_row=False)
        hits[made.id] = draw(st.integers(0, made.total_tokens - 1)) // block_tokens * block_tokens
        return made

    def prefilling():
        made = seq(has_row=True)
        made.plan_to(draw(st.integers(0, made.total_tokens - 1)))
        if cut_passes and draw(st.booleans()):
            stop = draw(st.integers(made.planned_tokens + 1, made.total_tokens))
            made.plan_part(stop, draw(st.integers(1, N_LAYERS - 1)))
        held[made.id] = -(-made.planned_tokens // block_tokens)
        if made.pass_stop_tokens is None and draw(st.booleans()):
            swaps[made.id] = draw(st.integers(0, 10**9))
        return made

    def decoding():
        made = seq(has_row=True)
        made.plan_to(made.total_tokens)
        made.join(StepCounter())
        held[made.id] = -(-made.planned_tokens // block_tokens)
        if draw(st.booleans()):
            swaps[made.id] = draw(st.integers(0, 10**9))
        return made

    def paused():
        made = prefilling()
        made.move(SeqState.PAUSED)
        return made

    parts = {kind.__name__: some(kind) for kind in (waiting, prefilling, decoding, paused)}
    following = []
    for late in parts["waiting"] if parts["prefilling"] else ():
        most = (late.total_tokens - 1) // block_tokens * block_tokens
        if most > hits[late.id] and draw(st.booleans()):
            coming[late.id] = draw(st.integers(hits[late.id] // block_tokens + 1, most // block_tokens)) * block_tokens
            following += [late] * draw(st.booleans())
    total = sum(held.values()) + draw(st.integers(1, 1000))
    available = draw(st.integers(0, total - sum(held.values())))
    memory = Blocks(block_tokens, total, available, held, hits, swaps, coming)
    costs = Costs(draw(st.floats(1e-6, 1)), draw(st.floats(1e-12, 1e-6)))
    return make_view(**parts, memory=memory, now_s=now_s, costs=costs, following=following)
