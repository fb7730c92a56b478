"""Two runs side by side: intervals, pairing and verdicts."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from penstock.core.request import Objective
from penstock.workload.compare import Comparison, Difference, compare
from penstock.workload.records import Outcome, RequestRecord, Run, RunHeader
from penstock.workload.report import render_comparison


def run_with(first_s: np.ndarray, label: str = "a", **changes: object) -> Run:
    """Requests a second apart, each with three tokens 0.1 s apart after its first."""
    records = tuple(
        replace(
            RequestRecord(
                index=index,
                scheduled_s=float(index),
                sent_s=float(index),
                end_s=float(index + wait_s + 0.2),
                token_s=tuple(float(index + wait_s + gap_s) for gap_s in (0.0, 0.1, 0.2)),
                input_tokens=10 + index,
                output_tokens=3,
                outcome=Outcome.OK,
                objective=Objective(ttft_s=1.0),
            ),
            **changes,
        )
        for index, wait_s in enumerate(first_s)
    )
    return Run(header=RunHeader(trace="t", url="u", model="m", label=label), records=records)


def by_name(a: Run, b: Run) -> dict:
    return {difference.name: difference for difference in compare(a, b).differences}


WAITS_S = np.random.default_rng(0).lognormal(-1, 1, 200)


def test_a_run_compared_with_itself_differs_in_nothing():
    same = run_with(WAITS_S)
    for difference in compare(same, same).differences:
        assert difference.a == difference.b
        assert (difference.low, difference.high) == (0.0, 0.0)
        assert difference.verdict == "same"


def test_a_constant_saving_has_an_interval_of_that_saving():
    found = by_name(run_with(WAITS_S + 0.5), run_with(WAITS_S, "b"))
    ttft = found["TTFT p90"]
    assert ttft.b - ttft.a == pytest.approx(-500.0)
    assert (ttft.low, ttft.high) == pytest.approx((-500.0, -500.0))  # paired: what a request costs in both is gone
    assert ttft.verdict == "better"
    assert found["attainment"].verdict == "better"


def test_more_is_better_for_goodput_and_less_for_latency():
    slow, fast = run_with(WAITS_S + 2.0, "slow"), run_with(WAITS_S, "fast")
    verdicts = {name: difference.verdict for name, difference in by_name(fast, slow).items()}
    assert verdicts["TTFT p50"] == verdicts["E2E p99"] == verdicts["attainment"] == verdicts["goodput"] == "worse"
    assert verdicts["TPOT p50"] == "same"


def test_runs_of_other_requests_are_compared_as_two_samples():
    other = run_with(WAITS_S[:150])
    assert compare(run_with(WAITS_S), run_with(WAITS_S, "b")).is_paired
    comparison = compare(run_with(WAITS_S), other)
    assert not comparison.is_paired
    assert all(difference.verdict == "same" for difference in comparison.differences if "TTFT" in difference.name)


def test_a_run_without_answers_has_figures_that_say_so():
    failed = run_with(WAITS_S, outcome=Outcome.ERROR)
    found = by_name(run_with(WAITS_S), failed)
    assert (found["TTFT p50"].b, found["TTFT p50"].low, found["TTFT p50"].verdict) == (None, None, "same")
    assert (found["attainment"].b, found["attainment"].verdict) == (0.0, "worse")


def test_the_interval_holds_the_true_difference_about_as_often_as_it_says():
    held, rng = 0, np.random.default_rng(5)
    for seed in range(20):
        one, two = (run_with(rng.lognormal(mean, 0.5, 150)) for mean in (0.0, 0.3))
        shifted = replace(two, records=tuple(replace(record, client="other") for record in two.records))  # not paired
        found = {difference.name: difference for difference in compare(one, shifted, seed=seed).differences}
        ttft = found["TTFT p50"]
        held += ttft.low <= 1000 * (np.exp(0.3) - 1.0) <= ttft.high
    assert held >= 16


def test_the_length_of_a_run_is_drawn_with_its_requests():
    """All is kept in both, and the second waits longer for its last answer: the change has a width."""
    a = run_with(np.full(60, 0.5))
    last = a.records[-1]
    b = Run(header=a.header, records=(*a.records[:-1], replace(last, end_s=last.end_s + 1.0)))
    goodput = by_name(a, b)["goodput"]
    assert goodput.low < 0 == goodput.high
    assert goodput.verdict == "same"


def test_a_terminal_of_80_characters_holds_every_cell():
    differences = tuple(
        Difference(name=name, unit=unit, is_less_better=True, a=a, b=b, low=b - 1.5 * a, high=b)
        for name, unit, a, b in (("goodput", "requests/s", 7.4216, 7.4131), ("output", "tokens/s", 98765.4, 98700.0))
    )
    comparison = Comparison(name_a="default", name_b="prefill-first", is_paired=True, differences=differences)
    console = Console(width=80, file=io.StringIO())
    console.print(render_comparison(comparison))
    assert "…" not in console.file.getvalue()
    assert "goodput, requests/s" in console.file.getvalue()
