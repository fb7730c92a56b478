"""What computing and copying cost on this instance: a guess at first, then what steps are seen to take.

Two numbers, each a mean that forgets: seconds of device time per known token, and seconds per byte between the tiers.
The guess counts as if so much had been seen already, and what was seen fades with every step. So one slow copy, such as
the first one, into memory that nobody has touched, does not end copying: it is tried again, and measured again.
Computing is taken to be linear in tokens, so a long context is thought cheaper than it is.
"""

from __future__ import annotations

from collections.abc import Iterable

from penstock.core.executor import ModelFacts, StepResult
from penstock.core.plan import Plan

# Until something was measured. A token takes two operations per weight, and a weight about two bytes.
GUESSED_OPERATIONS_PER_S = 1e12
GUESSED_MOVE_BYTES_PER_S = 8e9
GUESS_TOKENS = 500  # how much the guesses weigh
GUESS_BYTES = 64 * 2**20
KEPT_PER_STEP = 0.9995  # of what was seen: half after 1400 steps


class _Rate:
    """Seconds per unit: all seconds over all units, the guess's included."""

    def __init__(self, guess_s: float, guess_units: float) -> None:
        self._seconds, self._units = 0.0, 0.0
        self._guess_s, self._guess_units = guess_s * guess_units, guess_units

    @property
    def unit_s(self) -> float:
        return (self._seconds + self._guess_s) / (self._units + self._guess_units)

    def see(self, seconds: float, units: float) -> None:
        self._seconds += seconds
        self._units += units

    def fade(self, steps: int = 1) -> None:
        kept_frac = KEPT_PER_STEP**steps
        self._seconds *= kept_frac
        self._units *= kept_frac


class OnlineCosts:
    """The `CostView` of an engine, corrected by every result."""

    def __init__(self, facts: ModelFacts) -> None:
        self._token = _Rate(facts.weight_bytes / GUESSED_OPERATIONS_PER_S, GUESS_TOKENS)
        self._byte = _Rate(1 / GUESSED_MOVE_BYTES_PER_S, GUESS_BYTES)
        self._decode_s = 0.0  # of a step that only decodes, lately

    def prefill_s(self, tokens: int) -> float:
        return tokens * self._token.unit_s

    def move_s(self, n_bytes: int) -> float:
        return n_bytes * self._byte.unit_s

    def note_step(self, plan: Plan, result: StepResult) -> None:
        """A step was carried out; what a chunk took is what the step took longer than one without."""
        tokens = sum(chunk.tokens for chunk in plan.chunks)
        self._token.fade()
        self._byte.fade()
        if plan.is_empty:
            return
        if not tokens:
            self._decode_s += 0.1 * (result.device_s - self._decode_s)
            return
        others_s = self._decode_s if plan.decode.rows else 0.0
        self._token.see(max(0.0, result.device_s - others_s), tokens)

    def note_decodes(self, seconds: Iterable[float]) -> None:
        """Steps that only decode were carried out, and took so long."""
        decode_s, n = self._decode_s, 0
        for step_s in seconds:
            decode_s += 0.1 * (step_s - decode_s)
            n += 1
        self._decode_s = decode_s
        self._token.fade(n)
        self._byte.fade(n)

    def note_move(self, n_bytes: int, seconds: float) -> None:
        """So many bytes were copied between the tiers."""
        self._byte.see(seconds, n_bytes)

    def counters(self) -> dict[str, float]:
        """Gauges by plain name."""
        return {"prefill_seconds_per_token": self.prefill_s(1), "host_move_seconds_per_byte": self.move_s(1)}
