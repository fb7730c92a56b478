"""Who may start, but waits for a prefix that a running sequence computes.

Theory. Prompts with a common beginning that come together would each compute it, since a block can be found only when
it is planned. So whoever lacks what is being computed right now follows: it stays in the queue, and has what it would
have had by starting, a place among those who compute, and a row and memory set aside; those behind it in the queue go
on with the rest. It starts when *all* that it shares is there: had it started before, it would have computed the same
tokens beside the one it follows, which then is slower, too.

Patience. It follows as long as its source is about to compute those tokens; a source that yields, rests or ends
releases it at once. And it gives up when as many prompt tokens were planned as stood before it, and as many more as it
wanted to save: by then it would have computed them. Only a source that got all it promised, after which there is more
to follow, gives it new patience, and that ends with its prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.cache.memory import Memory
from penstock.core.plan import Plan
from penstock.core.sequence import Sequence
from penstock.engine.residents import Residents


@dataclass(slots=True)
class _Wait:
    """place: among those who compute. shared_tokens: what is coming. until: of `Followers` tokens; then it starts."""

    place: int
    shared_tokens: int
    until: int


class Followers:
    """The patience of those who follow, and their places."""

    def __init__(self, memory: Memory, residents: Residents) -> None:
        self._memory = memory
        self._residents = residents
        self._waits: dict[str, _Wait] = {}
        self._tokens = 0  # of prompts, that were planned while somebody followed; a step without any counts as one

    def follows(self, seq: Sequence) -> bool:
        """Whether it was let follow before, and need not be asked again: what it waits for is still coming."""
        wait = self._waits.get(seq.id)
        if wait is None or self._tokens >= wait.until:
            return False
        return self._memory.coming_tokens(seq) == wait.shared_tokens

    def try_follow(self, seq: Sequence) -> bool:
        """A sequence may follow if it wants to; False if nothing is coming, or its patience is over: it starts."""
        shared_tokens = self._memory.coming_tokens(seq)
        if not shared_tokens:
            return False
        wait = self._waits.get(seq.id)
        if wait is None:
            wait = self._waits[seq.id] = _Wait(self._residents.draw_place(), 0, 0)
        if shared_tokens > wait.shared_tokens:
            ahead_tokens = sum(other.prefill_left_tokens for other in self._residents.prefilling.values())
            wait.until = self._tokens + ahead_tokens + shared_tokens - wait.shared_tokens
            wait.shared_tokens = shared_tokens
        return self._tokens < wait.until

    def take_place(self, seq: Sequence) -> int | None:
        """It starts; None if it did not follow: it comes last."""
        wait = self._waits.pop(seq.id, None)
        return None if wait is None else wait.place

    def forget(self, seq: Sequence) -> None:
        """It ended in the queue."""
        self._waits.pop(seq.id, None)

    def note_step(self, plan: Plan) -> None:
        """A step was planned."""
        if self._waits:
            self._tokens += max(1, plan.tokens - plan.decode.tokens)
