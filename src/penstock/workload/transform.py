"""Transformations of traces: lazy, and each writes itself into the header's steps.

`scale_rate` compresses time: bursts get shorter as well, as they do with every published replayer. To have more users
in bursts of the same length, generate (burstgpt.py) or `mix` traces instead.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, takewhile

from msgspec.structs import replace

from penstock.core.request import NO_OBJECTIVE, Objective
from penstock.workload.trace import Trace, TraceError, TraceRequest

NO_CAP = 1 << 60


def step(trace: Trace, text: str, source: Callable[[], Iterator[TraceRequest]]) -> Trace:
    return Trace(dataclasses.replace(trace.header, steps=(*trace.header.steps, text)), source)


def scale_rate(trace: Trace, factor: float, *, scales_pauses: bool = False) -> Trace:
    """Multiply the rate by `factor` exactly; lengths stay. Pauses within sessions stay too unless asked."""
    if not 0 < factor < float("inf"):
        raise TraceError(f"cannot scale a rate by {factor}: give a positive number")

    def scaled(request: TraceRequest) -> TraceRequest:
        pause_s = request.pause_s
        if scales_pauses and pause_s is not None:
            pause_s /= factor
        return replace(request, arrival_s=request.arrival_s / factor, pause_s=pause_s)

    pauses = "pauses too" if scales_pauses else "pauses kept"
    return step(trace, f"time divided by {factor:g}, {pauses}", lambda: map(scaled, trace))


def slice_time(trace: Trace, start_s: float, stop_s: float) -> Trace:
    """What arrives in [start_s, stop_s); start_s becomes 0."""
    if not 0 <= start_s < stop_s:
        raise TraceError(f"cannot take [{start_s}, {stop_s}) s of a trace: the start must be 0 or more, the stop later")

    def source() -> Iterator[TraceRequest]:
        for request in takewhile(lambda request: request.arrival_s < stop_s, trace):
            if request.arrival_s >= start_s:
                yield replace(request, arrival_s=request.arrival_s - start_s)

    return step(trace, f"slice [{start_s:g}, {stop_s:g}) s", source)


def take(trace: Trace, n_requests: int) -> Trace:
    """The first requests."""
    if n_requests < 1:
        raise TraceError(f"cannot take {n_requests} requests: give 1 or more")
    return step(trace, f"first {n_requests} requests", lambda: islice(trace, n_requests))


def keep(trace: Trace, is_kept: Callable[[TraceRequest], bool], text: str) -> Trace:
    """Only some requests; `text` says which, for the header."""
    return step(trace, f"keep {text}", lambda: filter(is_kept, trace))


def clip(trace: Trace, *, max_input_tokens: int | None = None, max_output_tokens: int | None = None) -> Trace:
    """Cut lengths down to what a small model has room for; None leaves them."""
    if max_input_tokens is None and max_output_tokens is None:
        return trace
    most_input, most_output = (NO_CAP if cap is None else cap for cap in (max_input_tokens, max_output_tokens))
    if most_input < 1 or most_output < 1:
        raise TraceError(f"cannot clip to {most_input} + {most_output} tokens: give 1 or more of each")
    block_tokens = trace.header.block_tokens or 1

    def clipped(request: TraceRequest) -> TraceRequest:
        input_tokens = min(request.input_tokens, most_input)
        hashes = request.block_hashes[: -(-input_tokens // block_tokens)]
        ids = request.prompt_ids and request.prompt_ids[:input_tokens]
        output_tokens = min(request.output_tokens, most_output)
        return replace(
            request, input_tokens=input_tokens, output_tokens=output_tokens, block_hashes=hashes, prompt_ids=ids
        )

    return step(
        trace, f"clip to {max_input_tokens} input, {max_output_tokens} output tokens", lambda: map(clipped, trace)
    )


def set_objective(trace: Trace, objective: Objective) -> Trace:
    """Give every request the same limits."""
    names = ("ttft_s", "tpot_s", "deadline_s", "weight")
    text = ", ".join(f"{name} {value:g}" for name in names if (value := getattr(objective, name)) is not None)
    return step(trace, f"objective {text}", lambda: (replace(request, objective=objective) for request in trace))


def fill_objective(trace: Trace, objective: Objective) -> Trace:
    """Give these limits to requests that have none of their own."""

    def filled(request: TraceRequest) -> TraceRequest:
        return replace(request, objective=objective) if request.objective == NO_OBJECTIVE else request

    return step(trace, "objective for those without", lambda: map(filled, trace))


def tile(trace: Trace, times: int) -> Trace:
    """Repeat a trace; the copies have sessions and prefixes of their own, so they share nothing in a cache.

    A copy begins one mean gap after the end of the one before, so that the mean rate stays.
    """
    if times < 1:
        raise TraceError(f"cannot tile a trace {times} times: give 1 or more")

    def source() -> Iterator[TraceRequest]:
        start_s = 0.0
        for copy in range(times):
            times_s: list[float] = []  # first and last
            n_gaps = -1
            for request in trace:
                times_s, n_gaps = [*times_s[:1], request.arrival_s], n_gaps + 1
                yield _apart(replace(request, arrival_s=start_s + request.arrival_s), copy)
            if n_gaps > 0:
                start_s += times_s[1] + (times_s[1] - times_s[0]) / n_gaps - times_s[0]

    return step(trace, f"tiled {times} times", source)


def mix(traces: Sequence[Trace], name: str = "mix") -> Trace:
    """Superpose traces. Sessions and prefixes stay apart; a row without a client gets its trace's name."""
    if not traces:
        raise TraceError("cannot mix no traces: give one or more")
    sizes = {trace.header.block_tokens for trace in traces} - {None}
    if len(sizes) > 1:
        raise TraceError(
            f"cannot mix traces with blocks of {sorted(sizes, key=str)} tokens: one prompt maker serves all"
        )

    def part(place: int, trace: Trace) -> Iterator[TraceRequest]:
        for request in trace:
            yield replace(_apart(request, place), client=request.client or trace.header.name)

    header = dataclasses.replace(
        traces[0].header,
        name=name,
        seed=None,
        parameters={"mixed": [_described(trace) for trace in traces]},
        block_tokens=next(iter(sizes), None),
        steps=(f"mixed {', '.join(trace.header.name for trace in traces)}",),
    )
    parts = list(enumerate(traces))
    return Trace(header, lambda: heapq.merge(*(part(*one) for one in parts), key=lambda request: request.arrival_s))


def _described(trace: Trace) -> dict[str, object]:
    header = trace.header
    return {"name": header.name, "seed": header.seed, "parameters": header.parameters, "steps": list(header.steps)}


def _apart(request: TraceRequest, place: int) -> TraceRequest:
    """The same request in a world of its own; place 0 stays as it was."""
    if place == 0 or (request.session is None and not request.block_hashes):
        return request
    session = None if request.session is None else f"{request.session}~{place}"
    hashes = tuple(_other_hash(one, place) for one in request.block_hashes)
    return replace(request, session=session, block_hashes=hashes)


def _other_hash(block_hash: int, place: int) -> int:
    digest = hashlib.blake2b(f"{place}/{block_hash}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # 63 bits: fits every JSON reader's integers
