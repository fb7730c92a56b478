"""What a workload asks of a machine at the least: multiply-adds, and bytes to read. No engine can beat their sums.

Two sums over the whole run, each a lower bound of its time, so their maximum is one, too:

    compute   every prompt token that must be computed and every output token but the last of a request passes the
              layers; every output token passes the head; attention reads each visible key of each token
    reading   a decode step reads the weights once, whatever its batch, and the keys and values of its sequences; there
              are at least as many steps as the longest answer has tokens, and as all answers need at `most_running` a
              step. Of experts, a step reads those that its tokens hit if they choose evenly.

Writes, prompts' reads of the cache, and what a weight costs to be made a float again are left out: they only make
the bound lower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from penstock.cost.load import keys_seen
from penstock.models.facts import key_costs
from penstock.models.families.family import WeightNames
from penstock.models.packing import parameter_bytes
from penstock.models.parameters import Parameter, parameters_of
from penstock.models.spec import ExpertsSpec, ModelSpec
from penstock.models.weights import resolve_dtype
from penstock.workload.offline import OfflineRequest, OfflineWorkload


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineLimits:
    """Measured rates. linear_flop_per_s: of the weights' format; float_flop_per_s: of what attention computes in."""

    read_bytes_per_s: float
    linear_flop_per_s: float
    float_flop_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Seconds that the run takes at the least, by what sets them."""

    compute_s: float
    read_s: float

    @property
    def least_s(self) -> float:
        return max(self.compute_s, self.read_s)


def bound_of(
    spec: ModelSpec,
    workload: OfflineWorkload,
    limits: MachineLimits,
    *,
    dtype: str,
    quantize: str,
    most_running: int,
    has_prefix_cache: bool,
    device_type: str = "cpu",
) -> Bound:
    """The least time of a workload on a machine. most_running: sequences that the engine may run at a time."""
    work = _Work.of(spec, dtype, quantize, device_type)
    kv_itemsize = resolve_dtype(spec, dtype).itemsize
    linear_flops, attention_flops, kv_bytes = 0.0, 0.0, 0.0
    for index, request in enumerate(workload.requests):
        known_tokens = workload.shared_tokens if has_prefix_cache and index else 0
        stop = request.total_tokens - 1  # the last token is put out, not put in
        linear_flops += (stop - known_tokens) * work.layer_flops + request.output_tokens * work.head_flops
        for window_tokens, flops, values in work.attention:
            attention_flops += flops * (keys_seen(0, stop, window_tokens) - keys_seen(0, known_tokens, window_tokens))
            kv_bytes += values * kv_itemsize * keys_seen(len(request.prompt), stop, window_tokens)
    steps = _steps(workload.requests, most_running)
    rows = workload.output_tokens / steps
    return Bound(
        compute_s=linear_flops / limits.linear_flop_per_s + attention_flops / limits.float_flop_per_s,
        read_s=(steps * work.bytes_of_step(rows) + kv_bytes) / limits.read_bytes_per_s,
    )


def _steps(requests: tuple[OfflineRequest, ...], most_running: int) -> int:
    outputs = [request.output_tokens for request in requests]
    return max(max(outputs), -(-sum(outputs) // most_running))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """attention: by layer (window, multiply-adds times 2 per key, numbers in the cache per key)."""

    layer_flops: int
    head_flops: int
    dense_bytes: int
    expert_bytes: int
    expert_frac: float
    attention: tuple[tuple[int | None, int, int], ...]

    @classmethod
    def of(cls, spec: ModelSpec, dtype: str, quantize: str, device_type: str) -> _Work:
        parameters = [p for p in parameters_of(spec, WeightNames()) if p.name != "embed" or spec.is_tied]
        experts = [p for p in parameters if len(p.shape) == 3]
        mlps = [layer.mlp for layer in spec.layers if isinstance(layer.mlp, ExpertsSpec)]
        expert_frac = mlps[0].top_k / mlps[0].n_experts if mlps else 0.0

        def size(parameter: Parameter) -> int:
            return parameter_bytes(parameter, resolve_dtype(spec, dtype), quantize, device_type)

        head = spec.vocab_size * spec.hidden_size
        is_linear = [len(p.shape) == 2 and not p.name.endswith(("_norm", "_bias")) for p in parameters]
        in_layers = sum(p.elements for p, counts in zip(parameters, is_linear, strict=True) if counts) - head
        return cls(
            layer_flops=2 * in_layers + round(2 * expert_frac * sum(p.elements for p in experts)),
            head_flops=2 * head,
            dense_bytes=sum(size(p) for p in parameters if len(p.shape) != 3),
            expert_bytes=sum(size(p) for p in experts),
            expert_frac=expert_frac,
            attention=tuple(key_costs(spec)),
        )

    def bytes_of_step(self, rows: float) -> float:
        read_frac = 1 - math.pow(1 - self.expert_frac, rows)
        return self.dense_bytes + self.expert_bytes * read_frac
