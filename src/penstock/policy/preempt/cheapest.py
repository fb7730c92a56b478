"""The newest yields in the way that costs less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from penstock.core.sequence import SequenceView
from penstock.core.view import Preemption, Steady, View, Yield
from penstock.policy.options import check_option
from penstock.policy.preempt.newest import newest


@dataclass(frozen=True, slots=True)
class Cheapest(Steady):
    """The newest yields: by swap where copying its state out and in costs less than computing it again.

    Both are estimates (`View.costs`). Swapping is chosen below `swap_below` times the cost of computing; 0 never swaps.
    Without a host tier (`--host-kv-memory`) nobody can be swapped, and this is `newest`. To choose between the two per
    request is an idea of InferCept (arXiv 2402.01869). What the prefix cache may keep until then is not counted.
    """

    swap_below: float = 1.0

    def __post_init__(self) -> None:
        check_option("swap_below", self.swap_below, 0 <= self.swap_below < inf, "give a number, 0 or more")

    def choose(self, view: View) -> Sequence[Preemption]:
        return ()

    def victim(self, view: View, candidates: Sequence[SequenceView]) -> Preemption:
        victim = newest(candidates)
        assert victim.row is not None
        return Preemption(victim.row, Yield.SWAP if self._swaps(victim, view) else Yield.RECOMPUTE)

    def _swaps(self, seq: SequenceView, view: View) -> bool:
        n_bytes = view.memory.swap_bytes(seq)
        if n_bytes is None:
            return False
        return 2 * view.costs.move_s(n_bytes) < self.swap_below * view.costs.prefill_s(seq.planned_tokens)
