"""Prometheus metrics: what the engine counts, and what requests took as seen from here.

Observing is a bisection and two additions, since it happens once per token; families are built when somebody asks.
Every plain name of `AsyncEngine.counters()` becomes `penstock_NAME`, a counter if it ends in `_total`. With the switch,
the same figures appear under vLLM's names too, so that dashboards made for it work.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from penstock.api.errors import Refusal
from penstock.api.translate import Job
from penstock.core.sequence import FinishReason
from penstock.engine.outputs import AsyncEngine, OutputDelta, RequestStats

logger = logging.getLogger(__name__)

GAP_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10)
WAIT_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
WHOLE_S = (
    0.005,
    0.01,
    0.05,
    0.1,
    0.3,
    0.5,
    0.8,
    1,
    1.5,
    2,
    2.5,
    5,
    10,
    15,
    20,
    30,
    40,
    50,
    60,
    120,
    240,
    480,
    960,
    1920,
)
COUNTS = tuple(float(10**k * m) for k in range(6) for m in (1, 2, 5))
FEW = (1.0, 2.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True, slots=True)
class _Row:
    """A histogram: our name, what it counts, its buckets, vLLM's names for the same thing."""

    name: str
    help: str
    bounds: tuple[float, ...]
    vllm: tuple[str, ...] = ()


HISTOGRAMS = (
    _Row("ttft_seconds", "Arrival to first token, per sample", WAIT_S, ("time_to_first_token_seconds",)),
    _Row(
        "itl_seconds",
        "Gap between two deliveries of one sample, as the front end sees them",
        GAP_S,
        ("inter_token_latency_seconds", "time_per_output_token_seconds"),
    ),
    _Row(
        "tpot_seconds",
        "Mean time per output token after the first, per sample",
        GAP_S,
        ("request_time_per_output_token_seconds",),
    ),
    _Row("e2e_seconds", "Arrival to end, per sample", WHOLE_S, ("e2e_request_latency_seconds",)),
    _Row("queue_seconds", "Arrival to first plan, per sample", WAIT_S, ("request_queue_time_seconds",)),
    _Row("prefill_seconds", "First plan to first token, per sample", WAIT_S, ("request_prefill_time_seconds",)),
    _Row("decode_seconds", "First token to end, per sample", WHOLE_S, ("request_decode_time_seconds",)),
    _Row("inference_seconds", "First plan to end, per sample", WHOLE_S, ("request_inference_time_seconds",)),
    _Row("request_prompt_tokens", "Prompt tokens, per sample", COUNTS, ("request_prompt_tokens",)),
    _Row("request_output_tokens", "Output tokens, per sample", COUNTS, ("request_generation_tokens",)),
    _Row(
        "prefill_computed_tokens",
        "Prompt tokens that no cache held, per sample",
        COUNTS,
        ("request_prefill_kv_computed_tokens",),
    ),
    _Row("preemptions_per_sample", "Preemptions, per sample", (0.0, *FEW), ("request_num_preemptions",)),
    _Row("asked_samples", "n of a call", FEW, ("request_params_n",)),
    _Row("asked_tokens", "max_tokens of a call, where it has one", COUNTS, ("request_params_max_tokens",)),
)
VLLM_GAUGES = {
    "requests_running": ("num_requests_running",),
    "requests_waiting": ("num_requests_waiting",),
    "kv_used_frac": ("kv_cache_usage_perc", "gpu_cache_usage_perc"),
}
VLLM_COUNTERS = {
    "preemptions_total": "num_preemptions",
    "prefix_queried_tokens_total": "prefix_cache_queries",
    "prefix_hit_tokens_total": "prefix_cache_hits",
}
VLLM_REJECTIONS = {
    "requests_refused_max_queued_requests_total": "max_num_queued_reqs",
    "requests_refused_max_queued_tokens_total": "max_num_queued_tokens",
}


class Histogram:
    """Counts by bucket; a value on a bound belongs below it."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        rows, running = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            rows.append((bound, float(running)))
        return rows


class Metrics(Collector):
    """Everything that /metrics shows; one per application, with a registry of its own.

    has_started: whether the facts of the engine's model are known.
    """

    def __init__(
        self, engine: AsyncEngine, model: str, has_started: Callable[[], bool], *, has_vllm_names: bool = False
    ) -> None:
        self._engine = engine
        self._has_started = has_started
        self._model = model
        self._has_vllm_names = has_vllm_names
        self.histograms = {row.name: Histogram(row.bounds) for row in HISTOGRAMS}
        self.responses: Counter[tuple[str, str]] = Counter()  # by route and status
        self.refusals: Counter[str] = Counter()  # by error code
        self.ends: Counter[str] = Counter()  # samples by finish reason
        self.tokens: Counter[str] = Counter()
        self.gone = 0
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def begin(self, job: Job) -> Meter:
        sampling = job.requests[0].sampling
        self.histograms["asked_samples"].observe(sampling.n)
        if sampling.max_tokens is not None:
            self.histograms["asked_tokens"].observe(sampling.max_tokens)
        return Meter(self, job)

    def refused(self, refusal: Refusal, error: Exception, call_id: str) -> Refusal:
        """Count a refusal, and keep for the log what the client is not told."""
        self.refusals[refusal.code] += 1
        if refusal.status == 500:
            logger.error("call %s failed: %s", call_id, type(error).__name__, exc_info=error)
        return refusal

    def end(self, reason: FinishReason, stats: RequestStats) -> None:
        """A sample ended."""
        self.ends[reason.value] += 1
        self.tokens["prompt_tokens"] += stats.prompt_tokens
        self.tokens["prompt_cached_tokens"] += stats.cached_tokens
        self.tokens["generation_tokens"] += stats.output_tokens
        queue_s, ttft_s, e2e_s = stats.queue_s, stats.ttft_s, stats.e2e_s
        values = {
            "ttft_seconds": ttft_s,
            "tpot_seconds": stats.tpot_s,
            "e2e_seconds": e2e_s,
            "queue_seconds": queue_s,
            "prefill_seconds": None if ttft_s is None or queue_s is None else ttft_s - queue_s,
            "decode_seconds": None if ttft_s is None else e2e_s - ttft_s,
            "inference_seconds": None if queue_s is None else e2e_s - queue_s,
            "request_prompt_tokens": stats.prompt_tokens,
            "request_output_tokens": stats.output_tokens,
            "prefill_computed_tokens": stats.prompt_tokens - stats.cached_tokens,
            "preemptions_per_sample": stats.preemptions,
        }
        for name, value in values.items():
            if value is not None:
                self.histograms[name].observe(value)

    def collect(self) -> Iterator[Metric]:
        counters = self._engine.counters()
        yield from self._own(counters)
        if self._has_vllm_names:
            yield from self._as_vllm(counters)

    def _own(self, counters: Mapping[str, float]) -> Iterator[Metric]:
        for name, value in counters.items():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield kind(f"penstock_{name.removesuffix('_total')}", f"The engine's {name.replace('_', ' ')}", value=value)
        yield _labelled(
            "penstock_responses", "Answers by route and status", ("route", "status"), self.responses.items()
        )
        refusals = (((code,), n) for code, n in self.refusals.items())
        yield _labelled("penstock_refusals", "Errors that clients were sent, by code", ("code",), refusals)
        ends = (((reason,), n) for reason, n in self.ends.items())
        yield _labelled("penstock_samples_ended", "Samples by the reason of their end", ("reason",), ends)
        if self._has_started():
            yield self._kernels()
        for name, value in self.tokens.items():
            yield CounterMetricFamily(f"penstock_{name}", f"Sum of {name.replace('_', ' ')}", value=value)
        yield CounterMetricFamily("penstock_clients_gone", "Clients that left before their answer", value=self.gone)
        for row in HISTOGRAMS:
            yield self._histogram(f"penstock_{row.name}", row, {})

    def _kernels(self) -> GaugeMetricFamily:
        """A path that is slower than it could be shows here."""
        family = GaugeMetricFamily("penstock_kernel_info", "What computes an op", labels=["op", "kernel"])
        for op, kernel in self._engine.facts.kernels:
            family.add_metric([op, kernel], 1)
        return family

    def _as_vllm(self, counters: Mapping[str, float]) -> Iterator[Metric]:
        """What vLLM has and we do not measure is left out: a zero would be a lie."""
        labels = {"model_name": self._model, "engine": "0"}
        for name, theirs in VLLM_GAUGES.items():
            for other in theirs if name in counters else ():
                yield _one(GaugeMetricFamily(f"vllm:{other}", name, labels=list(labels)), labels, counters[name])
        for name, other in VLLM_COUNTERS.items():
            if name in counters:
                yield _one(CounterMetricFamily(f"vllm:{other}", name, labels=list(labels)), labels, counters[name])
        for name, other in (
            ("prompt_tokens", "prompt_tokens"),
            ("generation_tokens", "generation_tokens"),
            ("prompt_cached_tokens", "prompt_tokens_cached"),
        ):
            yield _one(CounterMetricFamily(f"vllm:{other}", name, labels=list(labels)), labels, self.tokens[name])
        yield self._by_reason("request_success", "finished_reason", self.ends, labels)
        refused = {reason: counters[name] for name, reason in VLLM_REJECTIONS.items() if name in counters}
        yield self._by_reason("admission_rejections", "reason", refused, labels)
        if self._has_started():
            yield self._cache_config(counters, labels)
        for row in HISTOGRAMS:
            for other in row.vllm:
                yield self._histogram(f"vllm:{other}", row, labels)

    def _by_reason(
        self, name: str, label: str, values: Mapping[str, float], labels: Mapping[str, str]
    ) -> CounterMetricFamily:
        family = CounterMetricFamily(f"vllm:{name}", f"By {label}", labels=[*labels, label])
        for reason, value in values.items():
            family.add_metric([*labels.values(), reason], value)
        return family

    def _cache_config(self, counters: Mapping[str, float], labels: Mapping[str, str]) -> GaugeMetricFamily:
        states = self._engine.facts.states
        info = {
            "block_size": str(states[0].block_tokens) if states else "0",
            "num_gpu_blocks": str(int(counters.get("kv_blocks", 0))),
        }
        family = GaugeMetricFamily("vllm:cache_config_info", "Of the KV cache", labels=[*labels, *info])
        family.add_metric([*labels.values(), *info.values()], 1)
        return family

    def _histogram(self, name: str, row: _Row, labels: Mapping[str, str]) -> HistogramMetricFamily:
        values = self.histograms[row.name]
        family = HistogramMetricFamily(name, row.help, labels=list(labels))
        family.add_metric(list(labels.values()), values.buckets(), values.total)
        return family


class Meter:
    """Times the deliveries of one call."""

    __slots__ = ("_last_s", "_metrics", "_n")

    def __init__(self, metrics: Metrics, job: Job) -> None:
        self._metrics = metrics
        self._n = job.n
        self._last_s: list[float | None] = [None] * (len(job.requests) * job.n)

    def take(self, prompt: int, delta: OutputDelta, now_s: float) -> None:
        if delta.tokens:
            choice = prompt * self._n + delta.index
            last_s = self._last_s[choice]
            if last_s is not None:
                self._metrics.histograms["itl_seconds"].observe(now_s - last_s)
            self._last_s[choice] = now_s
        if delta.finish_reason is not None and delta.stats is not None:
            self._metrics.end(delta.finish_reason, delta.stats)


def _one(family: Metric, labels: Mapping[str, str], value: float) -> Metric:
    assert isinstance(family, GaugeMetricFamily | CounterMetricFamily)
    family.add_metric(list(labels.values()), value)
    return family


def _labelled(
    name: str, text: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], float]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=list(labels))
    for values, value in rows:
        family.add_metric(list(values), value)
    return family
