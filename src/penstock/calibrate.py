"""`penstock simulate --replay-log`: a step log of the engine beside the simulator, in tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from penstock.cost.devices import DEVICES
from penstock.cost.profile import Fitted, read_profile
from penstock.cost.shipped import shipped_profile
from penstock.sim.calibrate import Difference, Log, cost_differences, kind_of
from penstock.sim.replay_log import Seen, replay_closed, replay_decisions, show_decision

WORST = 5


def run_calibration(path: Path, profile: Path | None, console: Console) -> None:
    """Where costs differ and where decisions do. profile: the cost model; None: what the engine itself predicted, and
    for the closed replay the one that ships.

    Raises StepLogError or ConfigError.
    """
    log = Log.read(path)
    header = log.header
    device = DEVICES.get(header.device, DEVICES["cpu"])
    found = read_profile(profile) if profile is not None else shipped_profile(header.facts.name, device.name)
    fitted = None if found is None else Fitted(found, device.host_bytes_per_s)
    source = "what the engine predicted" if profile is None or fitted is None else fitted.describe()
    n_ended = sum(end.index == 0 for end in log.ends.values())
    head = f"{len(log.steps)} steps and {n_ended} ended requests of {header.facts.name}; predicted: {source}"
    console.print(head, highlight=False, soft_wrap=True)
    differences = cost_differences(log, None if profile is None else fitted)
    console.print(cost_table(differences))
    n_larger = sum(one.is_extrapolated for one in differences)
    if n_larger:
        console.print(f"{n_larger} of these steps are larger than any that the profile measured", highlight=False)
    console.print(worst_table(differences))
    if log.why_open:
        console.print(f"decisions are not replayed: {log.why_open}", highlight=False)
        return
    n_alike, parting = replay_decisions(log, device, fitted if header.cost else None)
    if parting is None:
        console.print(f"decisions: all {n_alike} steps are planned as they were", highlight=False)
    else:
        console.print(
            f"decisions: {n_alike} steps are planned as they were, then step {parting.logged.plan} differs\n"
            f"  logged:  {show_decision(parting.logged)}\n  planned: {show_decision(parting.planned)}",
            highlight=False,
        )
    if fitted is not None:
        console.print(seen_table(replay_closed(log, device, fitted, fitted if header.cost else None)))


def cost_table(differences: Sequence[Difference]) -> Table:
    """Relative errors by kind of step."""
    table = Table(title="Predicted against measured device time", title_justify="left")
    for column in ("kind", "steps", "predicted / measured", "sum off by", "mean", "p50", "p90", "p99"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    by_kind: defaultdict[str, list[Difference]] = defaultdict(list)
    for difference in differences:
        by_kind[kind_of(difference.step)].append(difference)
    for kind, group in sorted(by_kind.items()):
        measured_s = sum(one.step.device_s for one in group)
        predicted_s = sum(one.predicted_s for one in group)
        off = np.abs([one.off_frac for one in group])
        table.add_row(
            kind,
            str(len(group)),
            f"{predicted_s:.2f} / {measured_s:.2f} s",
            f"{predicted_s / measured_s - 1:+.1%}",
            *(f"{frac:.1%}" for frac in (off.mean(), *np.percentile(off, (50, 90, 99)))),
        )
    return table


def worst_table(differences: Sequence[Difference]) -> Table:
    """Those that cost the most seconds of error."""
    table = Table(title="Worst steps", title_justify="left")
    for column in ("step", "kind", "rows", "keys", "tokens", "measured, ms", "predicted, ms"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    worst = sorted(differences, key=lambda one: -abs(one.predicted_s - one.step.device_s))[:WORST]
    for one in worst:
        tokens = sum(stop - start for start, stop, _, _ in one.step.chunks)
        table.add_row(
            str(one.step.plan),
            kind_of(one.step),
            str(one.step.decode_rows),
            f"{one.step.decode_keys:.0f}",
            str(tokens),
            f"{one.step.device_s * 1e3:.2f}",
            f"{one.predicted_s * 1e3:.2f}",
        )
    return table


def seen_table(seen: Sequence[Seen]) -> Table:
    """What the engine measured of its requests, and what a simulation with its own decisions predicts."""
    table = Table(title="The same requests on the virtual clock", title_justify="left")
    for column in ("of the engine", "percentile", "logged, ms", "predicted, ms", "off by"):
        table.add_column(column, justify="left" if column == "of the engine" else "right")
    measures: dict[str, list[tuple[float | None, float | None]]] = {
        "queue time": [(one.logged.queue_s, one.predicted.queue_s) for one in seen],
        "TTFT": [(one.logged.ttft_s, one.predicted.ttft_s) for one in seen],
        "E2E": [(one.logged.e2e_s, one.predicted.e2e_s) for one in seen],
    }
    for name, pairs in measures.items():
        known = [pair for pair in pairs if None not in pair]
        if not known:
            continue
        logged, predicted = np.array(known, float).T
        for percent in (50, 90, 99):
            logged_s, predicted_s = float(np.percentile(logged, percent)), float(np.percentile(predicted, percent))
            off = f"{predicted_s / logged_s - 1:+.1%}" if logged_s else "-"
            table.add_row(name, f"p{percent}", f"{logged_s * 1e3:.2f}", f"{predicted_s * 1e3:.2f}", off)
    return table
