"""A run over time: what was offered, how bursty it was and what became of it, window by window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penstock.core.request import NO_OBJECTIVE, Objective
from penstock.workload.lengths import Counts, Floats
from penstock.workload.measure import limits
from penstock.workload.records import Run

SUBBINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Requests due in [start_s, stop_s). gap_cv, dispersion: of their arrivals; 1 is Poisson, None if too few.

    running: mean number of requests on their way.
    """

    start_s: float
    stop_s: float
    offered_per_s: float
    gap_cv: float | None
    dispersion: float | None
    running: float
    kept_frac: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None


def windows(run: Run, objective: Objective = NO_OBJECTIVE, n_windows: int = 20) -> tuple[Window, ...]:
    """Equal stretches of the time in which requests were due."""
    due_s = np.array([record.scheduled_s for record in run.records])
    if due_s.size < 2 or due_s.max() <= 0:
        return ()
    edges_s = np.linspace(0.0, np.nextafter(due_s.max(), np.inf), n_windows + 1)
    kept = np.array([record.keeps(limits(record, objective)) for record in run.records])
    first_s = np.array([np.nan if record.ttft_s is None else record.ttft_s for record in run.records])
    spans_s = _spans_s(run)
    place = np.clip(np.searchsorted(edges_s, due_s, side="right") - 1, 0, n_windows - 1)
    return tuple(
        _window(
            edges_s[at], edges_s[at + 1], np.sort(due_s[place == at]), kept[place == at], first_s[place == at], spans_s
        )
        for at in range(n_windows)
    )


def _window(start_s: float, stop_s: float, due_s: Floats, kept: Counts, first_s: Floats, spans_s: Floats) -> Window:
    length_s = float(stop_s - start_s)
    gaps_s, measured_s = np.diff(due_s), first_s[np.isfinite(first_s)]
    counts = np.histogram(due_s, bins=SUBBINS, range=(start_s, stop_s))[0]
    overlaps_s = np.minimum(spans_s[:, 1], stop_s) - np.maximum(spans_s[:, 0], start_s)
    return Window(
        start_s=float(start_s),
        stop_s=float(stop_s),
        offered_per_s=due_s.size / length_s,
        gap_cv=float(gaps_s.std() / gaps_s.mean()) if gaps_s.size > 1 and gaps_s.mean() > 0 else None,
        dispersion=float(counts.var() / counts.mean()) if due_s.size > 1 else None,
        running=float(np.maximum(overlaps_s, 0).sum() / length_s),
        kept_frac=float(kept.mean()) if kept.size else None,
        ttft_p50_s=float(np.percentile(measured_s, 50)) if measured_s.size else None,
        ttft_p99_s=float(np.percentile(measured_s, 99)) if measured_s.size else None,
    )


def _spans_s(run: Run) -> Floats:
    spans = [
        (record.sent_s, record.end_s)
        for record in run.records
        if record.sent_s is not None and record.end_s is not None
    ]
    return np.array(spans, dtype=float).reshape(-1, 2)
