"""A run window by window, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.core.request import Objective
from penstock.workload.records import Outcome, RequestRecord, Run, RunHeader
from penstock.workload.windows import windows

HEADER = RunHeader(trace="t", url="u", model="m")


def run_of(*due_s: float, takes_s: float = 1.0) -> Run:
    records = (
        RequestRecord(
            index=index,
            scheduled_s=time_s,
            sent_s=time_s,
            token_s=(time_s + takes_s,),
            end_s=time_s + takes_s,
            input_tokens=1,
            output_tokens=1,
            outcome=Outcome.OK,
            objective=Objective(ttft_s=1.5),
        )
        for index, time_s in enumerate(due_s)
    )
    return Run(header=HEADER, records=tuple(records))


def test_windows_say_what_was_offered_and_what_became_of_it():
    early, late = windows(run_of(0.0, 1.0, 2.0, 3.0, 8.0, 10.0, takes_s=1.0), n_windows=2)
    assert (early.start_s, early.stop_s, late.start_s) == (0.0, pytest.approx(5.0), pytest.approx(5.0))
    assert early.offered_per_s == pytest.approx(4 / 5)
    assert early.gap_cv == pytest.approx(0.0)
    assert early.running == pytest.approx(4 / 5)  # four seconds of service within five
    assert (early.kept_frac, early.ttft_p50_s) == (1.0, pytest.approx(1.0))
    assert late.offered_per_s == pytest.approx(2 / 5)
    assert late.running == pytest.approx(1 / 5)  # the last request ends behind the window


def test_an_empty_window_has_no_latency_and_no_share():
    parts = windows(run_of(0.0, 9.0), n_windows=3)
    assert parts[1].offered_per_s == 0
    assert (parts[1].kept_frac, parts[1].ttft_p99_s, parts[1].gap_cv) == (None, None, None)


def test_every_request_is_in_one_window():
    due_s = np.sort(np.random.default_rng(0).uniform(0, 50, 300))
    parts = windows(run_of(*due_s), n_windows=7)
    assert sum(part.offered_per_s * (part.stop_s - part.start_s) for part in parts) == pytest.approx(300)


def test_a_single_moment_has_no_windows():
    assert windows(run_of(0.0)) == ()
