"""Which tensors a model has: our names and shapes, and the parts of each in a checkpoint.

One list says it all: the loader fills it, dummy weights fill it, the size is its sum, and the decoder reads it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from penstock.models.families.family import WeightNames
from penstock.models.spec import (
    AttentionSpec,
    DenseSpec,
    ExpertsSpec,
    LatentAttentionSpec,
    LayerSpec,
    ModelSpec,
    QkNorm,
)

Index = tuple[int | slice, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of the checkpoint, its shape there, and where it goes: `parameter[index]`, to which it broadcasts.

    is_transposed: its last two dimensions are ours in the other order. take: what of it goes there.
    """

    source: str
    shape: tuple[int, ...]
    index: Index = ()
    is_transposed: bool = False
    take: Index = ()


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tensor of ours. Its parts cover it without overlap; is_covered: all of it, else the rest is zeros."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    is_covered: bool = True

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
    match layer.attention:
        case AttentionSpec():
            yield from _attention(f"{prefix}.attention", layer.attention, hidden, names, index)
        case LatentAttentionSpec():
            yield from _latent_attention(f"{prefix}.attention", layer.attention, hidden, names, index)
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
    if spec.has_sinks:
        yield Parameter(f"{prefix}.sinks", (spec.q_heads,), (Part(names.sinks.format(layer=layer), (spec.q_heads,)),))
    out = names.attention_out.format(layer=layer)
    yield _whole(f"{prefix}.out", out, (hidden, q_rows))
    if spec.has_out_bias:
        yield _whole(f"{prefix}.out_bias", out, (hidden,), kind="bias")


def _latent_attention(
    prefix: str, spec: LatentAttentionSpec, hidden: int, names: WeightNames, layer: int
) -> Iterator[Parameter]:
    def linear(name: str, source: str, rows: int, columns: int, has_bias: bool) -> Iterator[Parameter]:
        source = source.format(layer=layer)
        yield _whole(f"{prefix}.{name}", source, (rows, columns))
        if has_bias:
            yield _whole(f"{prefix}.{name}_bias", source, (rows,), kind="bias")

    q_rows = spec.q_heads * (spec.nope_dim + spec.rope.dim)
    if spec.q_rank is None:
        yield from linear("q", names.qkv[0], q_rows, hidden, has_bias=False)
    else:
        yield from linear("q_a", names.q_a, spec.q_rank, hidden, spec.has_bias)
        yield _whole(f"{prefix}.q_a_norm", names.q_a_norm.format(layer=layer), (spec.q_rank,))
        yield from linear("q", names.q_b, q_rows, spec.q_rank, has_bias=False)
    yield from linear("kv_a", names.kv_a, spec.kv_rank + spec.rope.dim, hidden, spec.has_bias)
    yield _whole(f"{prefix}.kv_a_norm", names.kv_a_norm.format(layer=layer), (spec.kv_rank,))
    yield from linear("kv_b", names.kv_b, spec.q_heads * (spec.nope_dim + spec.v_dim), spec.kv_rank, has_bias=False)
    yield from linear("out", names.attention_out, hidden, spec.q_heads * spec.v_dim, spec.has_bias)


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
    router = names.router.format(layer=layer)
    yield _whole(f"{prefix}.router", router, (spec.n_experts, hidden))
    if spec.has_bias:
        yield _whole(f"{prefix}.router_bias", router, (spec.n_experts,), kind="bias")
    if names.stacked_gate_up is not None and names.stacked_down is not None:
        yield from _stacked_expert(f"{prefix}.gate_up", names.stacked_gate_up, spec, 2 * spec.width, hidden, layer)
        yield from _stacked_expert(f"{prefix}.down", names.stacked_down, spec, hidden, spec.width, layer)
    else:
        yield from _single_experts(prefix, spec, hidden, names, layer)
    if spec.shared is not None:
        yield from _dense(f"{prefix}.shared", spec.shared, hidden, names.shared_gate_up, names.shared_down, layer)
    if spec.has_shared_gate:
        yield _whole(f"{prefix}.shared_gate", names.shared_gate.format(layer=layer), (1, hidden))


def _stacked_expert(
    name: str, source: str, spec: ExpertsSpec, rows: int, columns: int, layer: int
) -> Iterator[Parameter]:
    """A matrix of every expert, which the checkpoint has in one tensor."""
    source = source.format(layer=layer)
    part = Part(source, (spec.n_experts, columns, rows), is_transposed=True)
    yield Parameter(name, (spec.n_experts, rows, columns), (part,))
    if spec.has_bias:
        yield Parameter(f"{name}_bias", (spec.n_experts, rows), (Part(f"{source}_bias", (spec.n_experts, rows)),))


def _single_experts(prefix: str, spec: ExpertsSpec, hidden: int, names: WeightNames, layer: int) -> Iterator[Parameter]:
    rows = (2 * spec.width // len(names.expert_gate_up),) * len(names.expert_gate_up)
    gate_up: list[Parameter] = []
    gate_up_bias: list[Parameter] = []
    down: list[Parameter] = []
    down_bias: list[Parameter] = []
    for expert in range(spec.n_experts):
        sources = [name.format(layer=layer, expert=expert) for name in names.expert_gate_up]
        source = names.expert_down.format(layer=layer, expert=expert)
        gate_up.append(_stacked(f"{prefix}.gate_up", sources, rows, hidden))
        gate_up_bias.append(_stacked_bias(f"{prefix}.gate_up_bias", sources, rows))
        down.append(_whole(f"{prefix}.down", source, (hidden, spec.width)))
        down_bias.append(_whole(f"{prefix}.down_bias", source, (hidden,), kind="bias"))
    yield _side_by_side(gate_up)
    yield _side_by_side(down)
    if spec.has_bias:
        yield _side_by_side(gate_up_bias)
        yield _side_by_side(down_bias)


def _side_by_side(ones: list[Parameter]) -> Parameter:
    """The same parameter of every expert, as one with a dimension more."""
    parts = (
        Part(part.source, part.shape, (expert, *part.index)) for expert, one in enumerate(ones) for part in one.parts
    )
    return Parameter(ones[0].name, (len(ones), *ones[0].shape), tuple(parts))


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
