"""A fit finds the parameters that made a trace."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_strategies import calm

from penstock.workload.arrivals import steady
from penstock.workload.burstgpt import generate
from penstock.workload.fit import fit, gamma_shape, ks_distance
from penstock.workload.presets import CHATGPT, preset
from penstock.workload.trace import Trace, TraceError, TraceHeader, TraceRequest


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0, 3.0])
def test_the_shape_of_gamma_gaps_is_recovered(alpha):
    gaps = np.random.default_rng(0).gamma(alpha, 7.0, 20_000)
    assert gamma_shape(gaps) == pytest.approx(alpha, rel=0.03)


def test_gaps_of_zero_fall_back_to_moments():
    gaps = np.array([0.0, 1.0, 2.0, 3.0])
    assert gamma_shape(gaps) == pytest.approx((1.5 / gaps.std()) ** 2)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=40), st.lists(st.floats(0, 100), min_size=1, max_size=40))
@calm
def test_a_ks_distance_is_symmetric_between_0_and_1_and_0_to_itself(one, two):
    a, b = np.array(one), np.array(two)
    assert ks_distance(a, a) == 0
    assert 0 <= ks_distance(a, b) == ks_distance(b, a) <= 1


def test_a_ks_distance_worked_out_by_hand():
    assert ks_distance(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 1.0
    assert ks_distance(np.array([1.0, 3.0]), np.array([2.0, 4.0])) == 0.5


@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_a_generated_trace_is_fitted_by_what_made_it(alpha):
    spec = preset("steady", rate_per_s=4.0, duration_s=3000.0)
    spec = replace(spec, services=(replace(spec.services[0], regimes=steady(alpha)),))
    found = fit(generate(spec, 1), CHATGPT)
    assert found.alpha == pytest.approx(alpha, rel=0.05)
    assert found.spec.rate_per_s == pytest.approx(4.0, rel=0.05)
    assert found.ks_gaps_gamma < 0.02
    assert (found.ks_gaps_poisson < 0.02) == (alpha == 1.0)
    assert max(found.ks_inputs_chatgpt, found.ks_outputs_chatgpt) < 0.02
    assert max(found.ks_inputs, found.ks_outputs) < 0.04
    assert [regime.name for regime in found.spec.services[0].regimes] == ["steady"]


def test_bursts_are_found_and_made_again():
    spec = preset("bursts", rate_per_s=4.0, duration_s=8000.0)
    found = fit(generate(spec, 3), CHATGPT, window_s=50.0)
    regimes = {regime.name: regime for regime in found.spec.services[0].regimes}
    assert set(regimes) == {"quiet", "normal", "burst"}
    assert regimes["burst"].rate_mult > 4 * regimes["quiet"].rate_mult
    assert found.spec.rate_per_s == pytest.approx(4.0, rel=0.1)
    again = list(generate(found.spec, 4))
    assert np.mean([request.input_tokens for request in again]) == pytest.approx(761, rel=0.1)


def test_a_coarse_clock_is_noticed():
    spec = preset("steady", rate_per_s=4.0, duration_s=500.0)
    rows = [msgspec.structs.replace(request, arrival_s=float(int(request.arrival_s))) for request in generate(spec, 1)]
    assert fit(Trace.of(TraceHeader(name="t"), rows), CHATGPT).together_frac > 0.5


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([TraceRequest(arrival_s=0, input_tokens=1, output_tokens=1)] * 5, "5 requests within 0 s"),
        ([TraceRequest(arrival_s=s, input_tokens=1, output_tokens=0) for s in range(50)], "no request with output"),
    ],
)
def test_a_trace_that_cannot_be_fitted_says_why(rows, said):
    with pytest.raises(TraceError, match=said):
        fit(Trace.of(TraceHeader(name="t"), rows), CHATGPT)
