"""The samples of one request (n > 1): sample 0 computes the prompt, the others wait for that and fork from it."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from penstock.cache.memory import Memory
from penstock.core.request import Request
from penstock.core.sequence import RESIDENT, Sequence


class Siblings:
    """Samples that are not in the queue yet, and whom those that are may fork from."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._unborn: dict[str, list[Sequence]] = {}  # by request
        self._parents: dict[str, Sequence] = {}  # sample 0, by sequence

    def __len__(self) -> int:
        """Samples that wait for their prompt."""
        return sum(len(samples) for samples in self._unborn.values())

    @property
    def tokens(self) -> int:
        """Of their prompts."""
        return sum(len(samples) * len(samples[0].request.prompt) for samples in self._unborn.values())

    def add(self, request: Request, samples: list[Sequence]) -> None:
        """They wait until `let_in` is told of sample 0."""
        if samples:
            self._unborn[request.id] = samples

    def let_in(self, parent: Sequence) -> Seq[Sequence]:
        """The prompt of `parent` is planned: who waited for it may start now."""
        samples = self._unborn.pop(parent.request.id, [])
        self._parents |= dict.fromkeys((sample.id for sample in samples), parent)
        return samples

    def parent_of(self, seq: Sequence) -> tuple[Sequence, int] | None:
        """(whom a sequence that starts takes its state over from, how many tokens of it); None: it starts alone.

        Not if the prefix cache has more.
        """
        parent, prompt_tokens = self._parents.get(seq.id), len(seq.request.prompt)
        if parent is None or parent.state not in RESIDENT or parent.planned_tokens < prompt_tokens:
            return None
        tokens = self._memory.fork_tokens(parent, prompt_tokens - 1)
        return (parent, tokens) if tokens > self._memory.hit_tokens(seq) else None

    def note_started(self, seq: Sequence) -> None:
        """From now on it computes for itself."""
        self._parents.pop(seq.id, None)

    def remove(self, seq: Sequence) -> bool:
        """A sequence ended; whether it was one that waited for its prompt."""
        self._parents.pop(seq.id, None)
        unborn = self._unborn.get(seq.request.id, [])
        if seq not in unborn:
            return False
        unborn.remove(seq)
        if not unborn:
            del self._unborn[seq.request.id]
        return True
