"""A fit of services, sessions, rhythm and failures finds what made the trace, and what it makes is like the trace."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from penstock.workload.arrivals import DAY_S, Profile
from penstock.workload.burstgpt import GeneratorSpec, SessionLaw, generate
from penstock.workload.fit import fit
from penstock.workload.fit_check import check, made_like
from penstock.workload.presets import CHATGPT, DAILY, preset
from penstock.workload.readers import read_burstgpt, write_burstgpt
from penstock.workload.trace import Trace, TraceHeader

LAW = SessionLaw(turns_median=3.0, turns_sigma=0.9, pause_sigma=1.5, new_text_frac=0.2)


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Two days of conversations, some of which fail, beside programs that send twice as much."""
    spec = preset("steady", rate_per_s=0.2, duration_s=2 * DAY_S)
    chat = replace(spec.services[0], sessions=LAW, failed_frac=0.03)
    api = replace(spec.services[0], name="api", category="api", rate_per_s=0.4)
    made = generate(GeneratorSpec(name="t", duration_s=spec.duration_s, services=(chat, api)), 3)
    return Trace.of(made.header, made)


def test_every_category_becomes_a_service_with_its_own_rate(trace):
    api, chat = fit(trace, CHATGPT).spec.services
    assert (api.name, chat.name) == ("api", "conversation")
    assert api.rate_per_s == pytest.approx(0.4, rel=0.05)
    assert chat.rate_per_s == pytest.approx(0.2, rel=0.1)
    assert api.sessions is None
    assert (api.failed_frac, chat.failed_frac) == (0.0, pytest.approx(0.03, rel=0.1))


def test_the_law_of_sessions_is_recovered(trace):
    law = fit(trace, CHATGPT).spec.services[1].sessions
    assert law is not None
    assert law.turns_median == pytest.approx(LAW.turns_median, rel=0.05)
    assert law.turns_sigma == pytest.approx(LAW.turns_sigma, rel=0.05)
    assert law.pause_median_s == pytest.approx(LAW.pause_median_s, rel=0.05)
    assert law.pause_sigma == pytest.approx(LAW.pause_sigma, rel=0.05)
    assert law.history_cap_tokens == pytest.approx(LAW.history_cap_tokens, rel=0.02)
    assert law.new_text_frac == pytest.approx(LAW.new_text_frac, rel=0.1)


def test_what_the_fit_makes_is_like_the_trace(trace):
    fitted = fit(trace, CHATGPT)
    distances = {one.name: one.ks for one in check(trace, made_like(fitted), fitted.window_s) if one.ks is not None}
    assert len(distances) == 6
    assert max(distances.values()) < 0.05


def test_conversations_without_history_are_fitted_as_such(trace):
    rows = [msgspec.structs.replace(row, input_tokens=50 + place % 7) for place, row in enumerate(trace)]
    law = fit(Trace.of(trace.header, rows), CHATGPT).spec.services[1].sessions
    assert law is not None
    assert law.history_cap_tokens == 0
    assert law.new_text_frac == pytest.approx(1.0, rel=0.02)


def test_a_slice_shorter_than_its_sessions_is_fitted_call_by_call():
    spec = preset("day", rate_per_s=25.0, duration_s=120.0)
    assert all(service.sessions is None for service in fit(generate(spec, 0), CHATGPT).spec.services)


def test_a_burstgpt_file_keeps_its_sessions_in_a_fit(trace, tmp_path):
    path = tmp_path / "t.csv"
    write_burstgpt(path, trace)
    law = fit(read_burstgpt(path), CHATGPT).spec.services[1].sessions
    assert law is not None
    assert law.turns_median == pytest.approx(LAW.turns_median, rel=0.05)


@pytest.mark.parametrize("has_rhythm", [True, False])
def test_days_that_repeat_each_other_have_a_rhythm(has_rhythm):
    spec = preset("ragged", rate_per_s=0.1, duration_s=6 * DAY_S)
    profile = Profile(daily=DAILY) if has_rhythm else Profile()
    made = generate(replace(spec, services=(replace(spec.services[0], profile=profile),)), 1)
    found = fit(made, CHATGPT).spec.services[0].profile
    if has_rhythm:
        assert np.array(found.daily) / np.mean(found.daily) == pytest.approx(np.array(DAILY) / np.mean(DAILY), abs=0.15)
    else:
        assert found.daily == ()
    assert found.weekly == ()  # six days say nothing of weeks


def test_failures_that_follow_load_are_told_from_those_that_do_not():
    for power in (0.0, 3.0):
        spec = preset("bursts", rate_per_s=2.0, duration_s=20_000.0)
        service = replace(spec.services[0], failed_frac=0.05, failed_power=power)
        made = generate(replace(spec, services=(service,)), 1)
        assert fit(made, CHATGPT).spec.services[0].failed_power == power


def test_a_rate_that_drifts_within_a_factor_of_two_has_regimes():
    rng = np.random.default_rng(0)
    made = list(generate(preset("steady", rate_per_s=2.0, duration_s=4000.0), 1))
    kept = [row for row in made if rng.random() < 0.75 + 0.25 * np.sin(row.arrival_s / 640)]
    regimes = fit(Trace.of(TraceHeader(name="t"), kept), CHATGPT).spec.services[0].regimes
    assert {regime.name for regime in regimes} == {"quiet", "normal", "burst"}
