"""Measured tables, and four named kinds of traffic made from them.

All four have the same mean rate, and the first three the same lengths, so that what differs between two replays is the
*order in time*. The fourth adds what else a day has, and asks for more tokens:

    steady   Poisson
    ragged   Gamma gaps of shape 0.5, CV 1.41: the shape that BurstGPT reports for its bursts
    bursts   the same gaps under three regimes; a burst runs at 24 times the rate of a quiet stretch
    day      a weekday: conversations with sessions and a daily rhythm, programs' calls in bursts, failures under load

Tables: prompts and answers of GPT-3.5 and GPT-4 conversations. Means, medians and the quantiles 0.5, 0.8, 0.95, 0.99
are published (GPT-4) or counted by third parties (ChatGPT: mean, median, range); the other points are our own
interpolation, chosen so that the means agree within 10 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from penstock.core.errors import UnknownName
from penstock.core.request import NO_OBJECTIVE, Objective
from penstock.workload.arrivals import Profile, Regime, steady
from penstock.workload.burstgpt import GeneratorSpec, ServiceSpec, SessionLaw
from penstock.workload.kinds import Traffic
from penstock.workload.lengths import LengthModel, QuantileTable
from penstock.workload.trace import TraceError

CHATGPT_INPUTS = QuantileTable(
    ((0, 1), (0.05, 15), (0.2, 110), (0.5, 547), (0.8, 1270), (0.95, 2180), (0.99, 3400), (0.9999, 8000), (1, 29_665))
)
CHATGPT_OUTPUTS = QuantileTable(
    ((0, 1), (0.05, 16), (0.2, 90), (0.5, 232), (0.8, 410), (0.95, 650), (0.99, 940), (0.9999, 1700), (1, 2048))
)
GPT4_INPUTS = QuantileTable(
    ((0, 1), (0.05, 15), (0.2, 110), (0.5, 582), (0.8, 1427), (0.95, 2345), (0.99, 3549), (0.9999, 8000), (1, 29_665))
)
GPT4_OUTPUTS = QuantileTable(
    ((0, 1), (0.05, 16), (0.2, 95), (0.5, 243), (0.8, 434), (0.95, 669), (0.99, 964), (0.9999, 1700), (1, 2048))
)
CHATGPT_OUTPUT_BY_INPUT = ((30.0, 265.0), (120.0, 155.0), (300.0, 155.0), (2000.0, 460.0))
GPT4_OUTPUT_BY_INPUT = ((30.0, 265.0), (120.0, 155.0), (300.0, 155.0), (2000.0, 430.0))
TAIL_FRAC = 0.00029

CHATGPT = LengthModel(CHATGPT_INPUTS, CHATGPT_OUTPUTS, CHATGPT_OUTPUT_BY_INPUT)
GPT4 = LengthModel(GPT4_INPUTS, GPT4_OUTPUTS, GPT4_OUTPUT_BY_INPUT)

# median requests per hour of a conversational service on a weekday; hours that are not published are interpolated
DAILY = (45, 25, 15, 8, 5, 5, 5, 5, 40, 105, 155, 155, 68, 100, 150, 185, 190, 130, 80, 105, 115, 120, 95, 75)
WEEKLY = (1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5)


def burst_regimes(alpha: float = 0.5, dwell_s: float = 60.0) -> tuple[Regime, ...]:
    """Quiet, normal and burst: 4/9, 4/9 and 1/9 of the time; more than half of the calls come in bursts."""
    return (
        Regime(name="quiet", rate_mult=0.25, alpha=1.0, mean_dwell_s=2 * dwell_s, next_frac={"normal": 1.0}),
        Regime(name="normal", rate_mult=1.0, alpha=0.8, mean_dwell_s=dwell_s, next_frac={"quiet": 0.5, "burst": 0.5}),
        Regime(name="burst", rate_mult=6.0, alpha=alpha, mean_dwell_s=dwell_s / 2, next_frac={"normal": 1.0}),
    )


def preset(
    name: str,
    *,
    rate_per_s: float = 1.0,
    duration_s: float = 600.0,
    scale: float = 1.0,
    max_input_tokens: int = 131_072,
    max_output_tokens: int = 8192,
    objective: Objective = NO_OBJECTIVE,
) -> GeneratorSpec:
    """One of the four at a mean rate over a length of time. scale: of all lengths, for small models."""
    if name not in set(Traffic):
        raise UnknownName("kind of traffic", name, list(Traffic))

    def sized(lengths: LengthModel) -> LengthModel:
        return replace(lengths, scale=scale, max_input_tokens=max_input_tokens, max_output_tokens=max_output_tokens)

    regimes: Mapping[str, tuple[Regime, ...]] = {
        Traffic.STEADY: steady(1.0),
        Traffic.RAGGED: steady(0.5),
        Traffic.BURSTS: burst_regimes(dwell_s=duration_s / 15),
        Traffic.DAY: steady(0.8),
    }
    service = ServiceSpec(
        name="chat",
        rate_per_s=rate_per_s,
        lengths=sized(CHATGPT),
        regimes=regimes[name],
        n_clients=4,
        objective=objective,
    )
    services = _day(service, sized(replace(GPT4, tail_frac=TAIL_FRAC))) if name == Traffic.DAY else (service,)
    return GeneratorSpec(name=name, duration_s=duration_s, services=services, is_path_exact=True)


def _day(chat: ServiceSpec, lengths: LengthModel) -> tuple[ServiceSpec, ...]:
    profile = Profile(daily=DAILY, weekly=WEEKLY)
    half_per_s = chat.rate_per_s / 2
    return (
        replace(chat, rate_per_s=half_per_s, profile=profile, sessions=SessionLaw(), failed_frac=0.018),
        replace(
            chat,
            name="api",
            rate_per_s=half_per_s,
            category="api",
            lengths=lengths,
            regimes=burst_regimes(dwell_s=1800.0),
            failed_frac=0.018,
        ),
    )


def at_rate(spec: GeneratorSpec, rate_per_s: float, *, keeps_burst_requests: bool = True) -> GeneratorSpec:
    """The same traffic at another mean rate; shapes, lengths and pauses stay.

    keeps_burst_requests: a burst has as many calls as before, so it gets shorter; otherwise it lasts as long as before
    and has more.
    """
    if not 0 < rate_per_s < float("inf"):
        raise TraceError(f"rate_per_s is {rate_per_s}, give a positive number")
    factor = rate_per_s / spec.rate_per_s
    shorter = factor if keeps_burst_requests else 1.0

    def faster(service: ServiceSpec) -> ServiceSpec:
        regimes = tuple(replace(regime, mean_dwell_s=regime.mean_dwell_s / shorter) for regime in service.regimes)
        return replace(service, rate_per_s=service.rate_per_s * factor, regimes=regimes)

    return replace(spec, services=tuple(map(faster, spec.services)))


def shaped(
    spec: GeneratorSpec,
    *,
    rate_per_s: float | None = None,
    duration_s: float | None = None,
    scale: float | None = None,
    max_input_tokens: int | None = None,
    max_output_tokens: int | None = None,
    objective: Objective | None = None,
    block_tokens: int | None = None,
    keeps_burst_requests: bool = True,
) -> GeneratorSpec:
    """The same traffic with other figures; None leaves what the spec says. scale multiplies what it scales already."""
    if rate_per_s is not None:
        spec = at_rate(spec, rate_per_s, keeps_burst_requests=keeps_burst_requests)

    def changed(service: ServiceSpec) -> ServiceSpec:
        old = service.lengths
        lengths = replace(
            old,
            scale=old.scale * (1.0 if scale is None else scale),
            max_input_tokens=old.max_input_tokens if max_input_tokens is None else max_input_tokens,
            max_output_tokens=old.max_output_tokens if max_output_tokens is None else max_output_tokens,
        )
        return replace(service, lengths=lengths, objective=service.objective if objective is None else objective)

    return replace(
        spec,
        duration_s=spec.duration_s if duration_s is None else duration_s,
        services=tuple(map(changed, spec.services)),
        block_tokens=spec.block_tokens if block_tokens is None else block_tokens,
    )
