"""What every policy of a slot promises, as functions to call on a policy of your own.

Each takes a policy and a view (`check_retain`: what to make policies with, and events) and raises PolicyViolation, with
the policy's name, if an answer could not be carried out, differs from one time to the next, or the policy changed what
it looked at. The project's tests run them on every row of the tables over random views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import inf, isfinite

from msgspec.structs import replace

from penstock.core.errors import PolicyViolation
from penstock.core.plan import NO_DECODE, Plan
from penstock.core.sequence import SeqState, SequenceView
from penstock.core.view import (
    Admission,
    AdmitPolicy,
    BatchPolicy,
    Doorkeeper,
    LengthPredictor,
    MemoryView,
    OrderPolicy,
    PoolView,
    Preemption,
    PreemptPolicy,
    RetainPolicy,
    Steady,
    View,
    Yield,
)
from penstock.policy.checks import check_choice

LATER_S = 1000.0


def check_order(policy: OrderPolicy, view: View) -> None:
    """Keys are finite numbers; a static key is the same at another time and among others."""
    before = _facts(view)
    later = replace(view, now_s=view.now_s + LATER_S, waiting=view.waiting[:1], running=(), prefilling=())
    for seq in view.waiting:
        key = policy.key(seq, view)
        if not key or not all(isinstance(part, int | float) and isfinite(part) for part in key):
            raise PolicyViolation(policy, f"the key {key!r} of {seq.id} has parts that are no finite numbers")
        _same(policy, f"the key of {seq.id}", key, policy.key(seq, view))
        if policy.is_static and policy.key(seq, later) != key:
            raise PolicyViolation(policy, f"it says that keys are static, but that of {seq.id} changed with the view")
    _unchanged(policy, before, view)


def check_admit(policy: AdmitPolicy, view: View) -> None:
    """The answer is an Admission, and one that starts with little memory starts with more.

    Where all that hold memory are paused, one of them starts: nobody else would ever give memory back.
    """
    before = _facts(view)
    _check_progress(policy, view)
    if isinstance(policy, Doorkeeper):
        _check_door(policy, view)
    for seq in view.waiting:
        answer = policy.admit(seq, view)
        if not isinstance(answer, Admission):
            raise PolicyViolation(policy, f"{answer!r} for {seq.id} is no Admission")
        _same(policy, f"the answer for {seq.id}", answer, policy.admit(seq, view))
        if answer is not Admission.START:
            continue
        for more in _more_memory(view):
            if policy.admit(seq, more) is not Admission.START:
                raise PolicyViolation(
                    policy,
                    f"{seq.id} may start with {_available(view)} blocks available, but not with {_available(more)}",
                )
    _unchanged(policy, before, view)


def _check_door(policy: Doorkeeper, view: View) -> None:
    """Whoever comes to an instance where nobody runs is let in; whoever asks for nothing is never late."""
    for seq in view.waiting:
        late_s = policy.late_by_s(seq.request, view)
        _same(policy, f"the answer at the door for {seq.id}", late_s, policy.late_by_s(seq.request, view))
        if late_s is not None and not 0 < late_s < inf:
            raise PolicyViolation(policy, f"{seq.id} is refused for being {late_s} s late: that is no time")
        alone = replace(view, waiting=(), prefilling=(), decoding=NO_DECODE, running=())
        if policy.late_by_s(seq.request, alone) is not None:
            raise PolicyViolation(policy, f"{seq.id} is refused where nobody runs: it would be refused for ever")


def _check_progress(policy: AdmitPolicy, view: View) -> None:
    if not view.running or any(seq.state is SeqState.RUNNING for seq in view.running):
        return
    for seq in view.waiting:
        answer = policy.admit(seq, view)
        if answer in (Admission.START, Admission.FOLLOW):  # where nobody runs, nobody can be followed: it starts
            return
        if answer is Admission.WAIT:
            raise PolicyViolation(policy, f"{seq.id} waits, and those behind it too, while nobody runs: for ever")
    raise PolicyViolation(policy, "nobody runs, and none of the paused sequences goes on")


def check_batch(policy: BatchPolicy, view: View, budget_tokens: int | None = None) -> None:
    """The plan can be carried out, and keeps to `budget_tokens` where the policy promises one.

    Decodes are not cut, so a step may hold as many as there are and one prompt token more.
    """
    before = _facts(view)
    choice = policy.batch(view)
    check_choice(policy, choice, view, {seq.row: seq for seq in view.prefilling if seq.row is not None})
    _same(policy, "the plan", choice, policy.batch(view))
    if budget_tokens is not None and choice.tokens > max(budget_tokens, choice.decode.tokens + 1):
        raise PolicyViolation(
            policy,
            f"{choice.tokens} tokens in a step, {choice.decode.tokens} of them decodes; the budget is {budget_tokens}",
        )
    if isinstance(policy, Steady):
        for steady in _steady_views(view):
            if policy.batch(steady) != Plan(decode=steady.decoding):
                raise PolicyViolation(policy, "it says that it is steady, but does not let everybody decode")
    _unchanged(policy, before, view)


def check_preempt(policy: PreemptPolicy, view: View) -> None:
    """Who yields of free will runs; who must yield is a candidate, and gives its memory up."""
    before = _facts(view)
    chosen = tuple(policy.choose(view))
    _same(policy, "the choice", chosen, tuple(policy.choose(view)))
    running = {seq.row for seq in view.running if seq.row is not None and seq.state is SeqState.RUNNING}
    rows = [preemption.row for preemption in chosen]
    if len(set(rows)) != len(rows) or not set(rows) <= running:
        raise PolicyViolation(policy, f"rows {rows} shall yield, {sorted(running)} run")
    for preemption in chosen:
        _check_swap(policy, preemption, view)
    if isinstance(policy, Steady) and any(policy.choose(steady) for steady in _steady_views(view)):
        raise PolicyViolation(policy, "it says that it is steady, but somebody yields")
    for n in range(1, len(view.running) + 1):
        candidates = view.running[:n]
        victim = policy.victim(view, candidates)
        _same(policy, f"the victim among {n}", victim, policy.victim(view, candidates))
        _check_victim(policy, victim, view, candidates)
    _unchanged(policy, before, view)


def _steady_views(view: View) -> Iterator[View]:
    """Nobody rests or has a prompt to compute; now and later, with and without those who wait."""
    decoding = set(view.decoding.rows)
    running = tuple(seq for seq in view.running if seq.row in decoding)
    for now_s in (view.now_s, view.now_s + LATER_S):
        for waiting in (view.waiting, ()):
            yield replace(view, now_s=now_s, waiting=waiting, prefilling=(), running=running)


def _check_victim(policy: PreemptPolicy, victim: Preemption, view: View, candidates: Iterable[SequenceView]) -> None:
    if victim.row not in {seq.row for seq in candidates}:
        raise PolicyViolation(policy, f"row {victim.row} is not among the candidates")
    if victim.how is Yield.PAUSE:
        raise PolicyViolation(policy, f"row {victim.row} is to {victim.how.value}: that frees no memory")
    _check_swap(policy, victim, view)


def _check_swap(policy: PreemptPolicy, preemption: Preemption, view: View) -> None:
    if preemption.how is Yield.SWAP:
        (seq,) = (seq for seq in view.running if seq.row == preemption.row)
        if view.memory.swap_bytes(seq) is None:
            raise PolicyViolation(policy, f"row {preemption.row} is to be swapped, and cannot be now")


def check_retain(new_policy: Callable[[], RetainPolicy], view: View, toggled: Iterable[int]) -> None:
    """Victims are evictable blocks, the same ones each time; every block goes in the end; pins are times.

    toggled: block numbers, one event each: a block that is not cached becomes so, a cached one is in use again.
    """
    policy, twin = new_policy(), new_policy()
    before = _facts(view)
    for seq in (*view.waiting, *view.running):
        until_s = policy.pin_until_s(seq, view.now_s)
        if until_s is not None and until_s != until_s:
            raise PolicyViolation(policy, f"{seq.id} is pinned until {until_s}")
        _same(policy, f"the pin of {seq.id}", until_s, policy.pin_until_s(seq, view.now_s))
    cached: set[int] = set()
    for k, block in enumerate(toggled):
        for each in (policy, twin):
            if block in cached:
                each.on_removed((block,))
            else:
                each.on_cached((block,), view.now_s + k)
        cached ^= {block}
        if cached:
            _check_evictable(policy, twin, cached)
    while cached:
        block = _check_evictable(policy, twin, cached)
        for each in (policy, twin):
            each.on_removed((block,))
        cached.remove(block)
    _unchanged(policy, before, view)


def _check_evictable(policy: RetainPolicy, twin: RetainPolicy, cached: set[int]) -> int:
    """The block that goes next."""
    victims = tuple(policy.victims(len(cached)))
    if len(victims) != len(cached) or set(victims) != cached:
        raise PolicyViolation(policy, f"blocks {sorted(victims)} shall be evicted, evictable are {sorted(cached)}")
    _same(policy, "the victims", victims, tuple(policy.victims(len(cached))))
    _same(policy, "the first victim", victims[:1], tuple(policy.victims(1)))
    _same(policy, "the victims after the same events", victims, tuple(twin.victims(len(cached))))
    return victims[0]


def check_predict(policy: LengthPredictor, view: View) -> None:
    """What a sequence has put out <= expected <= bound <= its limit."""
    before = _facts(view)
    for seq in (*view.waiting, *view.running):
        expected, bound = policy.expected_tokens(seq), policy.bound_tokens(seq)
        _same(policy, f"the guess for {seq.id}", expected, policy.expected_tokens(seq))
        _same(policy, f"the bound for {seq.id}", bound, policy.bound_tokens(seq))
        if not seq.output_tokens <= expected <= bound <= seq.output_limit_tokens:
            raise PolicyViolation(
                policy,
                f"{seq.id} has put out {seq.output_tokens} of at most {seq.output_limit_tokens} tokens; "
                f"it is expected to reach {expected}, with a bound of {bound}",
            )
    _unchanged(policy, before, view)


def _same(policy: object, what: str, first: object, second: object) -> None:
    if first != second:
        raise PolicyViolation(policy, f"{what} is {first!r}, and when asked again {second!r}")


def _facts(view: View) -> tuple[object, ...]:
    """Everything in a view that a policy must leave alone."""
    seqs = {seq.id: seq for seq in (*view.waiting, *view.prefilling, *view.running)}
    orders = tuple(tuple(seq.id for seq in part) for part in (view.waiting, view.prefilling, view.running))
    memory = tuple((pool.total_blocks, pool.available_blocks) for pool in view.memory.pools)
    return (orders, view.decoding.rows, memory, tuple(_seq_facts(seq, view.memory) for seq in seqs.values()))


def _seq_facts(seq: SequenceView, memory: MemoryView) -> tuple[object, ...]:
    return (
        seq.id, seq.request, seq.state, seq.row, seq.total_tokens, seq.output_tokens, seq.output_limit_tokens,
        seq.planned_tokens, seq.prefill_left_tokens, seq.pass_stop_tokens, seq.layers_done, seq.preemptions,
        seq.finish_reason, tuple(pool.held_blocks(seq) for pool in memory.pools), memory.hit_tokens(seq),
        memory.coming_tokens(seq),
    )  # fmt: skip


def _unchanged(policy: object, before: tuple[object, ...], view: View) -> None:
    if _facts(view) != before:
        raise PolicyViolation(policy, "it changed what it was shown; a policy answers, and changes nothing")


@dataclass(frozen=True, slots=True)
class _MorePool:
    """The same pool, with more blocks available."""

    pool: PoolView
    available_blocks: int

    @property
    def total_blocks(self) -> int:
        return self.pool.total_blocks

    def blocks_for(self, tokens: int) -> int:
        return self.pool.blocks_for(tokens)

    def held_blocks(self, seq: SequenceView) -> int:
        return self.pool.held_blocks(seq)


@dataclass(frozen=True, slots=True)
class _MoreMemory:
    """The same memory, with more blocks available in one pool."""

    memory: MemoryView
    pools: tuple[PoolView, ...]

    def hit_tokens(self, seq: SequenceView) -> int:
        return self.memory.hit_tokens(seq)

    def coming_tokens(self, seq: SequenceView) -> int:
        return self.memory.coming_tokens(seq)

    def swap_bytes(self, seq: SequenceView) -> int | None:
        return self.memory.swap_bytes(seq)


def _more_memory(view: View) -> Iterator[View]:
    pools = tuple(view.memory.pools)
    for at, pool in enumerate(pools):
        now, most = pool.available_blocks, pool.total_blocks
        for blocks in sorted({now + 1, (now + most + 1) // 2, most}):
            if now < blocks <= most:
                more = (*pools[:at], _MorePool(pool, blocks), *pools[at + 1 :])
                yield replace(view, memory=_MoreMemory(view.memory, more))


def _available(view: View) -> list[int]:
    return [pool.available_blocks for pool in view.memory.pools]
