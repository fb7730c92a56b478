"""A small bursty trace for demonstrations: a tiny model on a CPU falls behind in the bursts and recovers between."""

from __future__ import annotations

import itertools

import numpy as np

from penstock.core.request import Objective
from penstock.workload.trace import Trace, TraceHeader, TraceRequest

DEMO_OBJECTIVE = Objective(ttft_s=1.0, tpot_s=0.1)


def bursty_demo_trace(n_requests: int = 200, seed: int = 0) -> Trace:
    """About n_requests / 16 seconds: stretches of 25 requests at 10/s, then 25 within about half a second.

    Gaps are Gamma with shape 0.5 (CV 1.41). Prompts of 16 to 200 tokens, mostly short with some long ones; outputs of 8
    to 48. Three clients, of which one sends the long prompts.
    """
    rng = np.random.default_rng(seed)
    rate_per_s = np.where(np.arange(n_requests) // 25 % 2 == 0, 10.0, 45.0)
    arrivals_s = np.cumsum(rng.gamma(0.5, 2.0, n_requests) / rate_per_s)
    arrivals_s -= arrivals_s[0] if n_requests else 0.0
    is_long = rng.random(n_requests) < 0.2
    inputs = np.where(is_long, rng.integers(120, 201, n_requests), rng.integers(16, 65, n_requests))
    outputs = np.clip(np.rint(rng.lognormal(np.log(20), 0.5, n_requests)), 8, 48).astype(int)
    clients = np.where(is_long, "documents", np.where(rng.random(n_requests) < 0.5, "chat", "code"))
    rows = (
        TraceRequest(
            arrival_s=round(float(arrival_s), 4),
            input_tokens=int(n_input),
            output_tokens=int(n_output),
            client=str(client),
            category="long" if client == "documents" else "short",
            objective=DEMO_OBJECTIVE,
        )
        for arrival_s, n_input, n_output, client in zip(arrivals_s, inputs, outputs, clients, strict=True)
    )
    header = TraceHeader(
        name="bursty-demo", seed=seed, parameters={"generator": "bursty-demo", "n_requests": n_requests}
    )
    return Trace.of(header, itertools.islice(rows, n_requests))
