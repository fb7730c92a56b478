"""The demonstration of BurstGPT, small: the same rate in other orders, simulated and served."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from penstock.core.request import Objective
from penstock.demonstrations import burstgpt
from penstock.demonstrations.burstgpt import (
    DAY_NOTE,
    ON_CPU,
    ON_GPU,
    Load,
    exactly,
    sections,
    served,
    simulated,
    spaced,
    table_of,
)
from penstock.workload.html import write_page
from penstock.workload.kinds import Traffic

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def small():
    return simulated(QUIET, replace(ON_GPU, duration_s=20.0))


def test_the_regimes_ask_for_one_rate_and_differ_in_their_order_only():
    load = Load(rate_per_s=50.0, duration_s=100.0)
    traces = {kind: list(load.trace(kind)) for kind in Traffic}
    for rows in traces.values():
        assert len(rows) == pytest.approx(5000, rel=0.2)  # the sizes of sessions scatter
    n = min(map(len, traces.values()))
    steady, bursts = ([row.input_tokens for row in traces[kind]][:n] for kind in (Traffic.STEADY, Traffic.BURSTS))
    assert steady == bursts


def test_every_regime_gets_a_row_and_the_verdict_a_ratio(small):
    assert [run.name for run in small.runs] == [kind.value for kind in Traffic]
    assert table_of(small).row_count == len(Traffic)
    assert "times the goodput of bursts at its rate" in burstgpt.verdict(small)


def test_the_page_has_goodput_and_the_course_of_each_engine(small, tmp_path):
    write_page(tmp_path / "page.html", "t", sections([small, small], [DAY_NOTE]))
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 5  # bars, and for both a timeline and distributions
    assert page.count("<h2>llama-8b on one h200, simulated</h2>") == 2


def test_a_real_server_is_asked_relative_to_what_it_can_do(server):
    panel = served(QUIET, server.url, tokens=40, load=replace(ON_CPU, scale=0.02))
    assert [run.name for run in panel.runs] == [kind.value for kind in Traffic]
    assert panel.load.rate_per_s > 0
    assert panel.load.objective.ttft_s is not None
    assert all(record.objective == panel.load.objective for run in panel.runs for record in run.records)


def test_probes_are_spaced_evenly():
    rows = list(spaced(Load(duration_s=100.0, objective=Objective(ttft_s=1.0)).trace(Traffic.STEADY), 5, 0.5))
    assert [row.arrival_s for row in rows] == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_what_is_served_has_exactly_the_rate():
    load = Load(rate_per_s=4.0, duration_s=30.0)
    for kind in Traffic:
        made = list(load.trace(kind))
        rows = list(exactly(load.trace(kind), load))
        assert len(rows) == len(made)
        assert rows[-1].arrival_s == pytest.approx(made[-1].arrival_s * len(rows) / 120.0)
