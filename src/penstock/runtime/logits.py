"""The logits stage: what requests ask to be changed between the model and the draw.

It is an ordered list of transforms. Each keeps what it knows of a sequence on the device, by row, for rows that use it
alone; a step applies those that one of its sampling rows uses, and tells them afterwards what was drawn. A new feature
(the mask of a grammar) is one more `Transform` and its place in the list (`transforms.TRANSFORMS`).

The order of a step, which is that of vLLM:
1. `logprobs` are taken: they are those of the model, whatever follows.
2. Tokens are ruled out: all but the allowed ones, those that would complete a bad word, stops before `min_tokens`.
3. `logit_bias` is added.
4. Penalties: repetition, frequency, presence.
5. Temperature, then the filters top-k, top-p, min-p (`ops.sample`).

Only the allowed ids are absolute (minus infinity). A bad word or an early stop is held back by a very low number: if
nothing else is left, it is drawn all the same, and still no token that was not allowed.

A sequence that resumes in another row, or after a preemption, starts from `RowStart.tokens`: all that a transform
knows of it is a function of these, of `prompt_tokens` and of what is drawn from then on.

Shape letters: N sampling rows, V vocabulary, M those of them that use a transform.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from penstock.core.executor import ModelFacts
from penstock.core.plan import Plan, RowStart
from penstock.runtime.lines import Lines
from penstock.runtime.rows import Known
from penstock.runtime.transfer import Ints, send_all

HELD_BACK = -1e30  # below every logit, and far from overflow when penalties scale it


class Change(Protocol):
    """A transform at work on a fixed list of sampling rows; used for every step until the list changes."""

    def apply(self, logits_NV: Tensor, index_N: Tensor) -> None:
        """Change the logits in place. index_N: which output of its sequence each row draws, from 0."""
        ...

    def note(self, ids_N: Tensor, index_N: Tensor) -> None:
        """These tokens were drawn as outputs `index_N`."""
        ...


class Transform(ABC):
    """One kind of change, and what it keeps by row. Rows that use it hold a line of its tables."""

    def __init__(self, facts: ModelFacts, max_rows: int, device: torch.device) -> None:
        self.facts = facts
        self.device = device
        self.lines = Lines(max_rows)

    @abstractmethod
    def uses(self, start: RowStart) -> bool:
        """Whether the sequence asks for this."""

    @abstractmethod
    def write(self, lines: Ints, starts: Sequence[RowStart], known: Sequence[Known]) -> None:
        """Fill new lines, `lines.n_lines` at most. known: the ids of each start."""

    @abstractmethod
    def change(self, at_M: Tensor, lines_M: Tensor, lines_host_M: Ints) -> Change:
        """For the sampling rows at places `at_M`, which have the lines `lines_M`."""

    def start(self, starts: Sequence[RowStart], known: Sequence[Known]) -> None:
        using = [(start, ids) for start, ids in zip(starts, known, strict=True) if self.uses(start)]
        if using:
            lines = self.lines.take([start.row for start, _ in using])
            self.write(lines, [start for start, _ in using], [ids for _, ids in using])

    def gather(self, members: Ints) -> Change | None:
        """The change for the rows `members`; None if none of them uses it."""
        if not self.lines.n_used:
            return None
        at_host_M, lines_host_M = self.lines.among(members)
        if not len(at_host_M):
            return None
        at_M, lines_M = send_all((at_host_M, lines_host_M), self.device)
        return self.change(at_M, lines_M, lines_host_M)


class LogitsStage:
    """The transforms in their order."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self._transforms = tuple(transforms)

    def follow(self, plan: Plan, known: Sequence[Known]) -> None:
        """Carry out the plan's `ends` and `starts`."""
        for row in plan.ends:
            for transform in self._transforms:
                transform.lines.give_back(row)
        if plan.starts:
            for transform in self._transforms:
                transform.start(plan.starts, known)

    def is_used_by(self, members: Ints) -> bool:
        """Whether anything changes the logits of the rows `members`."""
        return any(transform.lines.n_used and len(transform.lines.among(members)[0]) for transform in self._transforms)

    def gather(self, members: Ints) -> tuple[Change, ...]:
        """What changes the logits of the rows `members`: nothing, mostly."""
        changes = [transform.gather(members) for transform in self._transforms]
        return tuple(change for change in changes if change is not None)
