"""Clocks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.clock import MonotonicClock, VirtualClock


@settings(deadline=None)
@given(start_s=st.floats(-1e6, 1e6), steps=st.lists(st.floats(0, 1e6), max_size=10))
def test_a_virtual_clock_moves_only_when_told_and_never_back(start_s, steps):
    clock = VirtualClock(start_s)
    for by_s in steps:
        before_s = clock.now_s()
        assert clock.now_s() == before_s
        clock.advance(by_s)
        assert clock.now_s() == before_s + by_s >= before_s


@pytest.mark.parametrize("by_s", [-1.0, -1e-9, float("nan"), float("inf")])
def test_a_step_that_is_not_forward_is_refused_and_changes_nothing(by_s):
    clock = VirtualClock(3.0)
    with pytest.raises(ValueError, match="a clock cannot"):
        clock.advance(by_s)
    assert clock.now_s() == 3.0


def test_the_monotonic_clock_never_runs_backwards():
    clock = MonotonicClock()
    looks = [clock.now_s() for _ in range(100)]
    assert looks == sorted(looks)
