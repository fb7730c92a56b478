"""Where to switch between three implementations, from timings whose answer is known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ops.dispatch import ALWAYS, Cuts, Timing, choose_cuts, mean_loss

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def timings_of(first, second, third, rows=ROWS):
    """Each a function of the number of rows, measured three times alike."""
    return [Timing(n, tuple([by(n)] * 3 for by in (first, second, third))) for n in rows]


def gemv(n):  # reads the weights for each row
    return 1.0 * n


def flat(n):
    return 2.5 + 0.02 * n


def library(n):  # filled up to 64 rows
    return 5.0 - 0.03 * n


@pytest.mark.parametrize(
    ("curves", "expected"),
    [
        ((gemv, flat, library), Cuts(3, 64)),  # 2.5 + 0.02 n meets 5 - 0.03 n at 50; the next point is 64
        ((gemv, flat, lambda n: 4.0 - 0.03 * n), Cuts(3, 32)),  # 3.04 against 3.14
        ((lambda n: 9.0 * n, flat, lambda n: 4.0 - 0.03 * n), Cuts(1, 32)),  # the first never wins
        ((gemv, lambda n: 99.0, library), Cuts(6, 6)),  # the second never wins
        ((gemv, flat, lambda n: 99.0), Cuts(3, None)),  # the third never wins
        ((lambda n: 1.0, flat, library), Cuts(None, None)),
        ((lambda n: 99.0, lambda n: 98.0, lambda n: 1.0), Cuts(1, 1)),
        ((lambda n: 1.0, lambda n: 0.98, lambda n: 0.99), Cuts(None, None)),  # 2 % is no gain
    ],
    ids=["all", "all, earlier", "first never", "second never", "third never", "first only", "third only", "no gain"],
)
def test_known_curves_give_known_cuts(curves, expected):
    assert choose_cuts(timings_of(*curves)) == expected


def test_one_disturbed_measurement_of_three_changes_nothing():
    calm = timings_of(gemv, flat, lambda n: 4.0 - 0.03 * n)
    disturbed = [Timing(t.rows, tuple([s[0], s[1] * 9, s[2]] for s in t.seconds_by)) for t in calm]
    assert choose_cuts(disturbed) == choose_cuts(calm) == Cuts(3, 32)


@pytest.mark.parametrize("at", range(len(ROWS)))
def test_one_number_of_rows_that_is_out_of_line_moves_no_cut_beyond_itself(at):
    calm = timings_of(gemv, flat, lambda n: 4.0 - 0.03 * n)
    out = Timing(ROWS[at], ([2.9], [3.0], [2.8]))
    found = choose_cuts([*calm[:at], out, *calm[at + 1 :]])
    assert abs(ROWS.index(found.second_from) - ROWS.index(3)) <= 1
    assert abs(ROWS.index(found.third_from) - ROWS.index(32)) <= 1


def test_an_implementation_that_does_not_serve_so_many_rows_is_left_before():
    timings = timings_of(gemv, flat, library, (1, 2, 4, 64, 96))
    timings[-1] = Timing(96, ([], [], [9.0]))
    assert choose_cuts(timings).third_from in (64, 96)
    timings[-1] = Timing(96, ([], [], []))
    with pytest.raises(ValueError, match="no implementation"):
        choose_cuts(timings)


def test_rows_that_do_not_ascend_are_refused():
    with pytest.raises(ValueError, match="ascending"):
        choose_cuts(timings_of(gemv, flat, library, (4, 2)))
    with pytest.raises(ValueError, match="ascending"):
        choose_cuts([])


SECONDS = st.floats(1e-6, 1.0)


@given(st.lists(st.tuples(SECONDS, SECONDS, SECONDS), min_size=1, max_size=12))
def test_no_single_implementation_is_better_by_more_than_the_gain_asked_for(times):
    timings = [Timing(n + 1, ([a], [b], [c])) for n, (a, b, c) in enumerate(times)]
    cuts = choose_cuts(timings)
    assert mean_loss(timings, cuts) >= 1 - 1e-9
    assert all(mean_loss(timings, cuts) <= mean_loss(timings, always) * 1.0629 for always in ALWAYS)


@given(st.lists(st.tuples(SECONDS, SECONDS, SECONDS), min_size=1, max_size=12), st.integers(1, 400))
def test_the_pick_follows_the_cuts(times, rows):
    cuts = choose_cuts([Timing(n + 1, ([a], [b], [c])) for n, (a, b, c) in enumerate(times)])
    starts = [1, cuts.second_from, cuts.third_from]
    assert cuts.pick(rows) == max(at for at, start in enumerate(starts) if start is not None and rows >= start)


@pytest.mark.parametrize(("second", "third"), [(None, 3), (5, 4), (0, 4), (0, None)])
def test_cuts_that_mean_nothing_are_refused(second, third):
    with pytest.raises(ValueError, match="cannot begin"):
        Cuts(second, third)
