"""Bisection finds the edge of what is held, and says so where there is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.sim.search import fewest_instances, highest_speed


@given(edge=st.floats(0.01, 1000))
def test_the_highest_speed_is_found_to_within_its_tolerance(edge):
    tried = []

    def attained(speed):
        tried.append(speed)
        return 1.0 if speed <= edge else 0.5

    bracket = highest_speed(attained, 0.9)
    assert bracket.held <= edge < bracket.missed <= bracket.held * 1.05
    assert len(tried) < 25


@pytest.mark.parametrize(("share", "held", "missed"), [(0.0, None, 2**-11), (1.0, 2**11, None)])
def test_where_nothing_or_everything_is_held_one_side_is_missing(share, held, missed):
    bracket = highest_speed(lambda speed: share, 0.9)
    assert (bracket.held, bracket.missed) == (held, missed)


@given(needed=st.integers(1, 64), most=st.sampled_from([1, 7, 64]))
def test_the_smallest_fleet_is_found(needed, most):
    found = fewest_instances(lambda n: 1.0 if n >= needed else 0.0, 0.9, most)
    assert found == (needed if needed <= most else None)
