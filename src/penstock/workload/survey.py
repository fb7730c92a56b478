"""What a trace holds, and what a fit found, as tables."""

from __future__ import annotations

import numpy as np
from rich.table import Table

from penstock.workload.fit import Fit
from penstock.workload.trace import Trace, TraceError

PERCENTILES = (50, 80, 95, 99)


def trace_table(trace: Trace) -> Table:
    """Rate, burstiness, lengths, sessions and shared prefixes. Walks the trace twice."""
    rows = [(r.arrival_s, r.input_tokens, r.output_tokens, len(r.block_hashes)) for r in trace]
    if not rows:
        raise TraceError(f"{trace.header.name}: no request is left")
    arrivals_s, inputs, outputs, _ = np.array(rows, dtype=float).T
    gaps_s = np.diff(arrivals_s)
    table = Table(trace.header.name, "", *(f"p{percent}" for percent in PERCENTILES), "max")
    table.add_row("steps", "; ".join(trace.header.steps) or "-")
    table.add_row("requests", f"{len(rows)} in {arrivals_s[-1] - arrivals_s[0]:.1f} s")
    if gaps_s.sum() > 0:
        table.add_row("mean rate", f"{gaps_s.size / gaps_s.sum():.3f} /s")
        table.add_row("gaps, s", f"CV {gaps_s.std() / gaps_s.mean():.2f}", *_percentiles(gaps_s, "{:.3g}"))
        table.add_row("same instant", f"{(gaps_s == 0).mean():.1%} of gaps are 0")
    table.add_row("input tokens", f"mean {inputs.mean():.0f}", *_percentiles(inputs, "{:.0f}"))
    table.add_row("output tokens", f"mean {outputs.mean():.0f}", *_percentiles(outputs, "{:.0f}"))
    table.add_row("failed", f"{(outputs == 0).mean():.2%}")
    _add_sharing(table, trace)
    return table


def _percentiles(values: np.ndarray, form: str) -> list[str]:
    return [form.format(value) for value in (*np.percentile(values, PERCENTILES), values.max())]


def _add_sharing(table: Table, trace: Trace) -> None:
    """Sessions, clients, and the share of blocks that a cache without limit would have."""
    turns: dict[str, int] = {}
    clients: set[str] = set()
    seen: set[int] = set()
    n_blocks = n_hits = 0
    for request in trace:
        clients.add(request.client)
        if request.session is not None:
            turns[request.session] = turns.get(request.session, 0) + 1
        n_blocks += len(request.block_hashes)
        for block_hash in request.block_hashes:
            if block_hash not in seen:
                break
            n_hits += 1
        seen.update(request.block_hashes)
    if turns:
        counts = np.array(list(turns.values()), dtype=float)
        summary = f"{counts.size}, {(counts == 1).mean():.0%} with one turn"
        table.add_row("sessions, turns", summary, *_percentiles(counts, "{:.0f}"))
    if clients != {""}:
        table.add_row("clients", str(len(clients)))
    if n_blocks:
        table.add_row("shared blocks", f"{n_hits / n_blocks:.1%} of {n_blocks} blocks of {trace.header.block_tokens}")


def fit_table(fitted: Fit) -> Table:
    """Shapes, regimes and distances of a fit."""
    table = Table(
        "fit", "", title=f"{fitted.requests} requests, {len(fitted.windows)} windows of {fitted.window_s:.0f} s"
    )
    alphas = [window.alpha for window in fitted.windows if window.alpha is not None]
    spread = f" (windows {min(alphas):.2f} to {max(alphas):.2f})" if alphas else ""
    table.add_row("Gamma shape of gaps, 1 is Poisson", f"{fitted.alpha:.2f}{spread}")
    if fitted.together_frac > 0.05:
        table.add_row(
            "! gaps of 0", f"{fitted.together_frac:.0%}: a coarse clock; shapes say little, spread the rows first"
        )
    for regime in fitted.spec.services[0].regimes:
        text = f"rate x{regime.rate_mult:.2f}, shape {regime.alpha:.2f}, {regime.mean_dwell_s:.0f} s at a time"
        table.add_row(f"regime {regime.name}", text)
    for title, distance in (
        ("gaps to Gamma of that shape", fitted.ks_gaps_gamma),
        ("gaps to Poisson", fitted.ks_gaps_poisson),
        ("inputs to the fitted table", fitted.ks_inputs),
        ("outputs to the fitted table", fitted.ks_outputs),
        ("inputs to ChatGPT conversations", fitted.ks_inputs_chatgpt),
        ("outputs to ChatGPT conversations", fitted.ks_outputs_chatgpt),
    ):
        table.add_row(f"KS distance, {title}", f"{distance:.3f}")
    return table
