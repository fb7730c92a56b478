"""Policies that are legal and do everything that is allowed, and a front end that puts tokens together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.core.plan import NO_DECODE, Chunk, Plan
from penstock.core.sequence import FinishReason, SequenceView
from penstock.core.view import Preemption, View, Yield
from penstock.engine.loop import Engine
from penstock.engine.messages import Update

CALM_AFTER_S = 300.0


class Outcome:
    """What a front end would have put together from the updates."""

    def __init__(self) -> None:
        self.tokens: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        self.reasons: dict[tuple[str, int], FinishReason] = {}

    def take(self, engine: Engine) -> None:
        for update in engine.take_updates():
            self.note(update)

    def note(self, update: Update) -> None:
        key = (update.request_id, update.index)
        assert key not in self.reasons, f"{key} went on after its end"
        self.tokens[key].extend(update.tokens)
        if update.finish is not None:
            self.reasons[key] = update.finish

    def run(self, engine: Engine, steps: int = 10_000) -> None:
        for _ in range(steps):
            if not engine.has_work:
                return
            for update in engine.step():
                self.note(update)
            engine.scheduler.audit()
        raise AssertionError("the engine does not come to an end")


@dataclass(frozen=True)
class RandomLayers:
    """Cuts prompts anywhere along tokens and layers, and skips decodes now and then; decided by counting."""

    cuts: tuple[int, ...]

    def batch(self, view: View) -> Plan:
        turn = int(view.now_s)
        chunks = []
        for k, seq in enumerate(view.prefilling):
            pick = self.cuts[(turn + k) % len(self.cuts)]
            if pick == 0:
                continue
            stop = seq.pass_stop_tokens or min(seq.total_tokens, seq.planned_tokens + pick)
            stop_layer = min(view.n_layers, seq.layers_done + 1 + pick % view.n_layers)
            chunks.append(
                Chunk(
                    row=seq.row or 0, start=seq.planned_tokens, stop=stop, first_layer=seq.layers_done,
                    stop_layer=stop_layer,
                )
            )  # fmt: skip
        skip = bool(chunks) and self.cuts[turn % len(self.cuts)] % 2 == 0
        return Plan(decode=NO_DECODE if skip else view.decoding, chunks=tuple(chunks))


@dataclass(frozen=True)
class Restless:
    """Pauses or preempts of free will, in every way there is, now and then, but never the oldest, and not for ever.

    Where a prompt gets one token a step and all is lost every other step, nothing would come to an end.
    """

    every: int

    def choose(self, view: View) -> Sequence[Preemption]:
        running = [seq for seq in view.running if seq.state.value == "running"]
        if len(running) < 2 or int(view.now_s) % self.every or view.now_s > CALM_AFTER_S:
            return ()
        newest = max(running, key=lambda seq: (seq.arrival_s, seq.id))
        if int(view.now_s) % (2 * self.every):
            return (Preemption(newest.row or 0, Yield.PAUSE),)
        return (_least_loss(view, newest),)

    def victim(self, view: View, candidates: Sequence[SequenceView]) -> Preemption:
        return _least_loss(view, max(candidates, key=lambda seq: (seq.arrival_s, seq.id)))


@dataclass(frozen=True)
class SwapNewest:
    """Swaps whoever came last, every so many seconds and whenever memory is short."""

    every: int

    def choose(self, view: View) -> Sequence[Preemption]:
        running = [seq for seq in view.running if seq.state.value == "running"]
        if len(running) < 2 or int(view.now_s) % self.every:
            return ()
        newest = max(running, key=lambda seq: (seq.arrival_s, seq.id))
        can_swap = newest.row is not None and view.memory.swap_bytes(newest) is not None
        return (Preemption(newest.row or 0, Yield.SWAP),) if can_swap else ()

    def victim(self, view: View, candidates: Sequence[SequenceView]) -> Preemption:
        newest = max(candidates, key=lambda seq: (seq.arrival_s, seq.id))
        can_swap = view.memory.swap_bytes(newest) is not None
        return Preemption(newest.row or 0, Yield.SWAP if can_swap else Yield.RECOMPUTE)


def _least_loss(view: View, seq: SequenceView) -> Preemption:
    """By swap two times of three, where it can be done."""
    assert seq.row is not None
    can_swap = view.memory.swap_bytes(seq) is not None and int(view.now_s) % 3
    return Preemption(seq.row, Yield.SWAP if can_swap else Yield.RECOMPUTE)
