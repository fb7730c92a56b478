"""From records to figures.

TTFT, ITL, TPOT and E2E are taken from the moment a request was sent, as other bench clients do; how late the client was
is a figure of its own, and a large one makes the others worthless. ITL is the gap between two events with output: its
distribution is over all gaps of all requests. A figure that nothing was measured for is None, never 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from penstock.core.request import NO_OBJECTIVE, Objective
from penstock.workload.records import RequestRecord, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Percentiles of one measure, in seconds."""

    n: int
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float

    @classmethod
    def of(cls, values_s: Iterable[float | None]) -> Spread | None:
        array = np.array([value for value in values_s if value is not None], dtype=float)
        if array.size == 0:
            return None
        p50, p90, p99 = np.percentile(array, (50, 90, 99))
        return cls(
            n=array.size,
            mean_s=float(array.mean()),
            p50_s=float(p50),
            p90_s=float(p90),
            p99_s=float(p99),
            max_s=float(array.max()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientShare:
    """What one client asked for and got. kept_frac: of its requests, those answered within their limits."""

    client: str
    requests: int
    kept_frac: float
    mean_pace_s: float | None  # mean over its answered requests of E2E per output token


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of one run. duration_s: first request sent to last request ended. limits: of the requests, in words.

    attainment_frac: share of *all* requests that were answered in full and within their limits; goodput is the same
    per second. short_answers: answered with fewer tokens than the trace asked for. jain_*: Jain's index over clients
    of kept_frac and of 1 / mean_pace_s, 1 is even; None with fewer than two clients.
    """

    requests: int
    limits: str
    outcomes: dict[str, int]
    duration_s: float
    requests_per_s: float
    output_tokens_per_s: float
    prompt_tokens_per_s: float
    goodput_per_s: float
    attainment_frac: float
    weighted_attainment_frac: float
    short_answers: int
    ttft: Spread | None
    tpot: Spread | None
    itl: Spread | None
    e2e: Spread | None
    queue: Spread | None
    lag: Spread | None
    clients: tuple[ClientShare, ...]
    jain_kept: float | None
    jain_pace: float | None

    @property
    def ok(self) -> int:
        return self.outcomes.get("ok", 0)


def summarise(run: Run, objective: Objective = NO_OBJECTIVE) -> Summary:
    """Figures of a run. `objective` is used for requests that have none of their own."""
    records = run.records
    good = [record for record in records if record.is_ok]
    kept = [record for record in records if record.keeps(limits(record, objective))]
    duration_s = run_duration_s(records)
    clients = _clients(records, objective)
    return Summary(
        requests=len(records),
        limits=_limits_in_words(records, objective),
        outcomes=dict(sorted(Counter(record.outcome.value for record in records).items())),
        duration_s=duration_s,
        requests_per_s=_per_s(len(good), duration_s),
        output_tokens_per_s=_per_s(sum(record.n_tokens for record in records), duration_s),
        prompt_tokens_per_s=_per_s(sum(record.prompt_tokens or record.input_tokens for record in good), duration_s),
        goodput_per_s=_per_s(len(kept), duration_s),
        attainment_frac=len(kept) / len(records) if records else 0.0,
        weighted_attainment_frac=_weight(kept, objective) / (_weight(records, objective) or 1.0),
        short_answers=sum(record.n_tokens < record.output_tokens for record in good),
        ttft=Spread.of(record.ttft_s for record in good),
        tpot=Spread.of(record.tpot_s for record in good),
        itl=Spread.of(gap_s for record in good if record.has_gaps for gap_s in np.diff(record.token_s)),
        e2e=Spread.of(record.e2e_s for record in good),
        queue=Spread.of(record.queue_ms / 1e3 for record in good if record.queue_ms is not None),
        lag=Spread.of(record.lag_s for record in records),
        clients=clients,
        jain_kept=jain([share.kept_frac for share in clients]),
        jain_pace=jain([1 / share.mean_pace_s for share in clients if share.mean_pace_s]),
    )


def limits(record: RequestRecord, fallback: Objective) -> Objective:
    return fallback if record.objective == NO_OBJECTIVE else record.objective


NO_LIMITS = "none"


def _limits_in_words(records: Sequence[RequestRecord], fallback: Objective) -> str:
    found = {replace(limits(record, fallback), weight=1.0) for record in records}
    if found <= {NO_OBJECTIVE}:
        return NO_LIMITS
    if len(found) > 1:
        return f"{len(found)} different ones"
    one = found.pop()
    named = (("TTFT", one.ttft_s), ("TPOT", one.tpot_s), ("deadline", one.deadline_s))
    return ", ".join(f"{name} {limit_s:g} s" for name, limit_s in named if limit_s is not None)


def run_duration_s(records: Sequence[RequestRecord]) -> float:
    sent_s = [record.sent_s for record in records if record.sent_s is not None]
    ends_s = [record.end_s for record in records if record.end_s is not None]
    return max(ends_s) - min(sent_s) if sent_s and ends_s else 0.0


def jain(values: Sequence[float]) -> float | None:
    """(sum x)^2 / (n * sum x^2): 1 if all get the same, 1/n if one gets everything."""
    if len(values) < 2:
        return None
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares > 0 else 1.0  # all got nothing: evenly


def _per_s(count: float, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0


def _weight(records: Iterable[RequestRecord], objective: Objective) -> float:
    return sum(limits(record, objective).weight for record in records)


def _clients(records: Sequence[RequestRecord], objective: Objective) -> tuple[ClientShare, ...]:
    by_client: dict[str, list[RequestRecord]] = {}
    for record in records:
        by_client.setdefault(record.client, []).append(record)
    return tuple(_share(client, by_client[client], objective) for client in sorted(by_client))


def _share(client: str, records: list[RequestRecord], objective: Objective) -> ClientShare:
    paces_s = [record.e2e_s / record.n_tokens for record in records if record.is_ok and record.e2e_s is not None]
    return ClientShare(
        client=client,
        requests=len(records),
        kept_frac=sum(record.keeps(limits(record, objective)) for record in records) / len(records),
        mean_pace_s=sum(paces_s) / len(paces_s) if paces_s else None,
    )
