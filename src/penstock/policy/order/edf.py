"""Earliest deadline first."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from penstock.core.sequence import SequenceView
from penstock.core.view import View
from penstock.policy.options import check_option


@dataclass(frozen=True, slots=True)
class EarliestDeadlineFirst:
    """By the time at which the next limit of the objective falls due.

    Before the first token that is arrival + ttft_s, after it (a preempted sequence) arrival + deadline_s; whichever
    exists. Without any limit a request counts as due `no_deadline_s` after its arrival, so that it cannot starve.
    """

    no_deadline_s: float = 60.0

    def __post_init__(self) -> None:
        check_option(
            "no_deadline_s", self.no_deadline_s, 0 < self.no_deadline_s < inf, "give a positive number of seconds"
        )

    @property
    def is_static(self) -> bool:
        return True

    def key(self, seq: SequenceView, view: View) -> tuple[float, ...]:
        limits = seq.objective
        first = limits.ttft_s if limits.ttft_s is not None and seq.output_tokens == 0 else inf
        last = limits.deadline_s if limits.deadline_s is not None else inf
        due_s = min(first, last)
        return (seq.arrival_s + (due_s if due_s < inf else self.no_deadline_s),)
