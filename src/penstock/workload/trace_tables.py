"""What a trace holds, and what a fit found, as tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from penstock.workload.burstgpt import ServiceSpec
from penstock.workload.fit import Fit
from penstock.workload.fit_check import Statistic
from penstock.workload.survey import Distribution, Survey

PERCENTILES = (50, 80, 95, 99)
MOST_NAMED = 6  # categories


def trace_table(found: Survey) -> Table:
    """Rate, burstiness, lengths, sessions and shared prefixes."""
    table = Table(found.header.name, "", *(f"p{percent}" for percent in PERCENTILES), "max")
    table.add_row("steps", "; ".join(found.header.steps) or "-")
    table.add_row("requests", f"{found.requests} in {found.last_s - found.first_s:.1f} s")
    if found.gaps_s.total > 0:
        table.add_row("mean rate", f"{found.gaps_s.n / found.gaps_s.total:.3f} /s")
        table.add_row("gaps, s", f"CV {found.gaps_s.cv:.2f}", *_percentiles(found.gaps_s, "{:.3g}"))
        table.add_row("same instant", f"{found.together / found.gaps_s.n:.1%} of gaps are 0")
    table.add_row("input tokens", f"mean {found.inputs.mean:.0f}", *_percentiles(found.inputs, "{:.0f}"))
    table.add_row("output tokens", f"mean {found.outputs.mean:.0f}", *_percentiles(found.outputs, "{:.0f}"))
    table.add_row("failed", f"{found.failed / found.requests:.2%}")
    if found.wrong_totals is not None:
        table.add_row("total is not the sum", f"{found.wrong_totals} rows")
    if found.turns.counts:
        counts = np.array(list(found.turns.counts.values()), dtype=float)
        turns = Distribution()
        turns.add(counts)
        summary = f"{found.turns.n}, {(counts == 1).mean():.0%} with one turn"
        table.add_row("sessions, turns", summary, *_percentiles(turns, "{:.0f}"))
    if set(found.clients.counts) != {""}:
        table.add_row("clients", found.clients.n)
    if set(found.categories.counts) != {""}:
        table.add_row("categories", _named(found))
    if found.n_blocks:
        shared = f"{found.n_shared / found.n_blocks:.1%} of {found.n_blocks} blocks of {found.header.block_tokens}"
        table.add_row("shared blocks", f"about {shared}" if found.blocks.halvings else shared)
    return table


def _percentiles(values: Distribution, form: str) -> list[str]:
    return [form.format(value) for value in values.quantiles(np.array([*PERCENTILES, 100]) / 100)]


def _named(found: Survey) -> str:
    most = sorted(found.categories.counts.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{name or '(none)'} {count / found.requests:.1%}" for name, count in most[:MOST_NAMED])
    return named if len(most) <= MOST_NAMED else f"{found.categories.n}: {named}, ..."


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
    for service in fitted.spec.services:
        _add_service(table, service)
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


def _add_service(table: Table, service: ServiceSpec) -> None:
    """What the generator will use for it."""
    failures = f", {service.failed_frac:.2%} fail as load^{service.failed_power:g}" if service.failed_frac else ""
    rhythm = ", rhythm of the day" if service.profile.daily else ""
    table.add_row(f"service {service.name}", f"{service.rate_per_s:.4g} calls/s{rhythm}{failures}")
    for regime in service.regimes:
        text = f"rate x{regime.rate_mult:.2f}, shape {regime.alpha:.2f}"
        dwell = f", {regime.mean_dwell_s:.0f} s at a time" if len(service.regimes) > 1 else ""
        table.add_row(f"  regime {regime.name}", text + dwell)
    law = service.sessions
    if law is not None:
        turns = f"turns median {law.turns_median:.2f}, sigma {law.turns_sigma:.2f}"
        pauses = f"pauses median {law.pause_median_s:.3g} s, sigma {law.pause_sigma:.2f}"
        table.add_row("  sessions", f"{turns}; {pauses}")
        history = (
            f"up to {law.history_cap_tokens} tokens of what was said" if law.history_cap_tokens else "not repeated"
        )
        table.add_row("  later prompts", f"history {history}, new text x{law.new_text_frac:.2f}")


def check_table(statistics: Sequence[Statistic], made: str) -> Table:
    """A trace beside the one that was made from its fit."""
    table = Table("statistic", "given", "generated", "KS distance", title=f"The trace beside '{made}', seed 1")
    for column in table.columns[1:]:
        column.justify = "right"
    for one in statistics:
        table.add_row(one.name, one.given, one.made, "-" if one.ks is None else f"{one.ks:.3f}")
    return table
