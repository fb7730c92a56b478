"""Which tensors a model has: our names and shapes, and the parts of each in a checkpoint.

One list says it all: the loader fills it, dummy weights fill it, the size is its sum, and the decoder reads it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from penstock.models.families.family import WeightNames
from penstock.models.spec import AttentionSpec, DenseSpec, ExpertsSpec, LayerSpec, ModelSpec, QkNorm

Index = tuple[int | slice, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of the checkpoint, its shape there, and where it goes: `parameter[index]`, to which it broadcasts."""

    source: str
    shape: tuple[int, ...]
    index: Index = ()


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tensor of ours. Its parts cover it without overlap."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def parameters_of(spec: ModelSpec, names: WeightNames) -> Iterator[Parameter]:
    """Every parameter of the model, in the order in which a step uses them."""
    hidden = spec.hidden_size
    yield _whole("embed", names.embed, (spec.vocab_size, hidden))
    for index, layer in enumerate(spec.layers):
        yield from _layer(layer, hidden, names, index)
    yield _whole("final_norm", names.final_norm, (hidden,))
    if not spec.is_tied:
        yield _whole("head", names.head, (spec.vocab_size, hidden))


def _layer(layer: LayerSpec, hidden: int, names: WeightNames, index: int) -> Iterator[Parameter]:
    prefix = f"layers.{index}"
    if layer.norms.has_before:
        yield _whole(f"{prefix}.input_norm", names.input_norm.format(layer=index), (hidden,))
    yield from _attention(f"{prefix}.attention", layer.attention, hidden, names, index)
    if layer.norms.has_behind:
        yield _whole(f"{prefix}.attention_post_norm", names.attention_post_norm.format(layer=index), (hidden,))
    if layer.norms.has_before:
        yield _whole(f"{prefix}.mlp_norm", names.mlp_norm.format(layer=index), (hidden,))
    match layer.mlp:
        case DenseSpec():
            yield from _dense(f"{prefix}.mlp", layer.mlp, hidden, names.gate_up, names.down, index)
        case ExpertsSpec():
            yield from _experts(f"{prefix}.mlp", layer.mlp, hidden, names, index)
    if layer.norms.has_behind:
        yield _whole(f"{prefix}.mlp_post_norm", names.mlp_post_norm.format(layer=index), (hidden,))


def _attention(prefix: str, spec: AttentionSpec, hidden: int, names: WeightNames, layer: int) -> Iterator[Parameter]:
    q_rows, kv_rows = spec.q_heads * spec.head_dim, spec.kv_heads * spec.head_dim
    qkv = [name.format(layer=layer) for name in names.qkv]
    rows = (q_rows, kv_rows, kv_rows) if len(qkv) == 3 else (q_rows + 2 * kv_rows,)
    yield _stacked(f"{prefix}.qkv", qkv, rows, hidden)
    if spec.has_qkv_bias:
        yield _stacked_bias(f"{prefix}.qkv_bias", qkv, rows)
    yield from _qk_norm(prefix, spec, names.q_norm.format(layer=layer), names.k_norm.format(layer=layer))
    out = names.attention_out.format(layer=layer)
    yield _whole(f"{prefix}.out", out, (hidden, q_rows))
    if spec.has_out_bias:
        yield _whole(f"{prefix}.out_bias", out, (hidden,), kind="bias")


def _qk_norm(prefix: str, spec: AttentionSpec, q_name: str, k_name: str) -> Iterator[Parameter]:
    match spec.qk_norm:
        case QkNorm.HEAD:  # a row per head, so that queries and keys are one call
            parts = (
                Part(f"{q_name}.weight", (spec.head_dim,), (slice(0, spec.q_heads),)),
                Part(f"{k_name}.weight", (spec.head_dim,), (slice(spec.q_heads, None),)),
            )
            yield Parameter(f"{prefix}.qk_norm", (spec.q_heads + spec.kv_heads, spec.head_dim), parts)
        case QkNorm.PROJECTION:
            yield _whole(f"{prefix}.q_norm", q_name, (spec.q_heads * spec.head_dim,))
            yield _whole(f"{prefix}.k_norm", k_name, (spec.kv_heads * spec.head_dim,))


def _dense(
    prefix: str, spec: DenseSpec, hidden: int, gate_up_names: tuple[str, ...], down_name: str, layer: int
) -> Iterator[Parameter]:
    gate_up = [name.format(layer=layer) for name in gate_up_names]
    rows = (2 * spec.width // len(gate_up),) * len(gate_up)
    down = down_name.format(layer=layer)
    yield _stacked(f"{prefix}.gate_up", gate_up, rows, hidden)
    if spec.has_bias:
        yield _stacked_bias(f"{prefix}.gate_up_bias", gate_up, rows)
    yield _whole(f"{prefix}.down", down, (hidden, spec.width))
    if spec.has_bias:
        yield _whole(f"{prefix}.down_bias", down, (hidden,), kind="bias")


def _experts(prefix: str, spec: ExpertsSpec, hidden: int, names: WeightNames, layer: int) -> Iterator[Parameter]:
    rows = (2 * spec.width // len(names.expert_gate_up),) * len(names.expert_gate_up)
    gate_up: list[Part] = []
    down: list[Part] = []
    for expert in range(spec.n_experts):
        sources = [name.format(layer=layer, expert=expert) for name in names.expert_gate_up]
        one = _stacked("", sources, rows, hidden)
        gate_up += (Part(part.source, part.shape, (expert, *part.index)) for part in one.parts)
        source = f"{names.expert_down.format(layer=layer, expert=expert)}.weight"
        down.append(Part(source, (hidden, spec.width), (expert,)))
    yield _whole(f"{prefix}.router", names.router.format(layer=layer), (spec.n_experts, hidden))
    yield Parameter(f"{prefix}.gate_up", (spec.n_experts, 2 * spec.width, hidden), tuple(gate_up))
    yield Parameter(f"{prefix}.down", (spec.n_experts, hidden, spec.width), tuple(down))
    if spec.shared is not None:
        yield from _dense(f"{prefix}.shared", spec.shared, hidden, names.shared_gate_up, names.shared_down, layer)
    if spec.has_shared_gate:
        yield _whole(f"{prefix}.shared_gate", names.shared_gate.format(layer=layer), (1, hidden))


def _whole(name: str, source: str, shape: tuple[int, ...], kind: str = "weight") -> Parameter:
    return Parameter(name, shape, (Part(f"{source}.{kind}", shape),))


def _stacked(name: str, sources: list[str], rows: tuple[int, ...], columns: int) -> Parameter:
    """Matrices one below the other."""
    stops = [sum(rows[: at + 1]) for at in range(len(rows))]
    parts = tuple(
        Part(f"{source}.weight", (n_rows, columns), (slice(stop - n_rows, stop),))
        for source, n_rows, stop in zip(sources, rows, stops, strict=True)
    )
    return Parameter(name, (stops[-1], columns), parts)


def _stacked_bias(name: str, sources: list[str], rows: tuple[int, ...]) -> Parameter:
    stops = [sum(rows[: at + 1]) for at in range(len(rows))]
    parts = tuple(
        Part(f"{source}.bias", (n_rows,), (slice(stop - n_rows, stop),))
        for source, n_rows, stop in zip(sources, rows, stops, strict=True)
    )
    return Parameter(name, (stops[-1],), parts)
