"""A survey says the same as numpy over the whole trace, and does not grow with it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_strategies import calm

from penstock.workload.survey import CHUNK_ROWS, N_BINS, Distribution, Followed, Rates, Survey, survey
from penstock.workload.trace import Trace, TraceError, TraceHeader, TraceRequest

HEADER = TraceHeader(name="t", block_tokens=16)


def trace_of(rows) -> Trace:
    return Trace.of(HEADER, rows)


def request(arrival_s: float, **fields) -> TraceRequest:
    return TraceRequest(**{"arrival_s": arrival_s, "input_tokens": 10, "output_tokens": 5} | fields)


@given(chunks=st.lists(st.lists(st.integers(0, 9999), min_size=1, max_size=50), min_size=1, max_size=4))
@calm
def test_counts_have_the_quantiles_and_moments_of_the_values(chunks):
    seen = Distribution()
    for chunk in chunks:
        seen.add(np.array(chunk, dtype=float))
    values = np.concatenate([np.array(chunk, dtype=float) for chunk in chunks])
    fracs = np.array([0, 0.25, 0.5, 0.99, 1])
    np.testing.assert_allclose(seen.quantiles(fracs), np.quantile(values, fracs), rtol=1e-9)
    assert seen.n == values.size
    assert seen.mean == pytest.approx(values.mean())
    if values.mean() > 0:
        assert seen.cv == pytest.approx(values.std() / values.mean(), abs=1e-6)


def test_gaps_are_rounded_to_digits_and_so_stay_few():
    rng = np.random.default_rng(0)
    seen = Distribution()
    for _ in range(20):
        seen.add(rng.exponential(1.0, 10_000), digits=3)
    assert seen.n == 200_000
    assert seen.values.size < 6 * 900
    assert seen.quantiles(np.array([0.5]))[0] == pytest.approx(np.log(2), rel=0.02)
    zero = Distribution()
    zero.add(np.zeros(3), digits=3)
    assert zero.values.tolist() == [0.0]


def test_too_many_keys_become_a_share_of_them_with_their_counts():
    followed: Followed[int] = Followed(limit=1000)
    for _ in range(3):
        for key in range(20_000):
            if followed.follows(key):
                followed.add(key)
    assert len(followed.counts) <= 1000
    assert len(followed.counts) * followed.scale == pytest.approx(20_000, rel=0.15)
    assert set(followed.counts.values()) == {3}
    assert followed.n.startswith("about ")


@given(times_s=st.lists(st.floats(0, 1e7), min_size=1, max_size=200).map(sorted))
@calm
def test_rates_count_every_arrival_however_long_the_trace(times_s):
    rates = Rates()
    for part in np.array_split(np.array(times_s), 3):
        if part.size:
            rates.add(part)
    assert rates.counts.sum() == len(times_s)
    assert rates.counts.size == N_BINS
    stop_s = times_s[-1] + rates.width_s
    starts_s, per_s = rates.per_s(stop_s, 100)
    lengths_s = np.diff(np.append(starts_s, stop_s))
    assert (per_s * lengths_s).sum() == pytest.approx(len(times_s), rel=0.5)


def test_a_survey_of_several_chunks_is_that_of_the_whole():
    rng = np.random.default_rng(1)
    n = 2 * CHUNK_ROWS + 7
    times_s = np.cumsum(rng.exponential(0.5, n)).round(6)
    rows = [
        request(
            time_s,
            input_tokens=int(rng.integers(1, 99)),
            output_tokens=int(rng.integers(0, 3)),
            session=f"s{place // 3}",
            client=f"c{place % 5}",
            block_hashes=(place // 3, 10**9 + place),
        )
        for place, time_s in enumerate(times_s.tolist())
    ]
    found = survey(trace_of(rows))
    assert found.requests == n
    assert found.gaps_s.total == pytest.approx(times_s[-1] - times_s[0])
    assert found.gaps_s.n == n - 1
    assert found.failed == sum(row.output_tokens == 0 for row in rows)
    assert (found.clients.n, found.turns.n) == ("5", str(len({row.session for row in rows})))
    # of each session, the first block of the second and third turn was seen before
    assert (found.n_blocks, found.n_shared) == (2 * n, n - len({row.session for row in rows}))


def test_a_block_behind_an_unknown_one_is_not_shared():
    found = survey(trace_of([request(0, block_hashes=(1, 2)), request(1, block_hashes=(9, 2))]))
    assert found.n_shared == 0


def test_following_fewer_blocks_leaves_the_shared_part():
    rows = [request(place, block_hashes=(place % 2000, 10**6 + place)) for place in range(8000)]
    found = Survey(header=HEADER, blocks=Followed(limit=500))
    found.take(rows)
    assert found.blocks.halvings > 0
    exact = survey(trace_of(rows))
    assert found.n_shared / found.n_blocks == pytest.approx(exact.n_shared / exact.n_blocks, abs=0.1)


def test_a_trace_without_requests_is_an_error():
    with pytest.raises(TraceError, match="no request is left"):
        survey(Trace(HEADER, lambda: iter(())))
