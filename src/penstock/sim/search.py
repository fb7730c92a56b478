"""How much a fleet holds, and which fleet is the cheapest that holds a load: bisection over simulations.

A load is held if at least `attainment_frac` of all requests are answered within their limits. More load never helps, so
the highest held one is found by halving; as simulations are noisy near it, the answer is a bracket.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

FIRST_SPEED = 1.0
MOST_DOUBLINGS = 12
LeastFrac = Callable[[float], float]  # speed, or number of instances -> share of requests within their limits


@dataclass(frozen=True, slots=True)
class Bracket:
    """The load `held` was held, `missed` was not; None: even the lowest, or the highest tried, on that side."""

    held: float | None
    missed: float | None


def highest_speed(attainment: LeastFrac, attainment_frac: float, tolerance_frac: float = 0.05) -> Bracket:
    """The highest multiple of the trace's rate that is held, to within `tolerance_frac`."""
    held, missed = None, None
    speed = FIRST_SPEED
    for _ in range(MOST_DOUBLINGS):
        if attainment(speed) >= attainment_frac:
            held = speed
            if missed is not None:
                break
            speed *= 2
        else:
            missed = speed
            if held is not None:
                break
            speed /= 2
    if held is None or missed is None:
        return Bracket(held, missed)
    while missed / held > 1 + tolerance_frac:
        middle = (held * missed) ** 0.5
        if attainment(middle) >= attainment_frac:
            held = middle
        else:
            missed = middle
    return Bracket(held, missed)


def fewest_instances(attainment: LeastFrac, attainment_frac: float, most: int) -> int | None:
    """The smallest number that holds the trace as it is; None if not even `most` do."""
    held, missed = 1, 0
    while attainment(held) < attainment_frac:
        if held == most:
            return None
        missed, held = held, min(held * 2, most)
    while held - missed > 1:
        middle = (held + missed) // 2
        if attainment(middle) >= attainment_frac:
            held = middle
        else:
            missed = middle
    return held
