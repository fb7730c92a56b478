"""Tensor parallelism as data: which part of a model each of several ranks holds (Megatron-LM, arXiv 1909.08053).

What leaves a rank's share of a layer is a summand: attention heads are independent until `out` mixes them, and so are
the inner features of an MLP, of every expert too, until `down` does. So a rank holds whole heads and a stretch of inner
features, `out` and `down` by columns, and one sum over the ranks follows each half of a layer. Embedding and head are
cut by tokens of the vocabulary. Norms, routers and the latents of MLA are the same on every rank.

A rank's model is an ordinary `ModelSpec` with fewer heads and narrower MLPs (`spec_of_rank`), and each of its tensors
is the one of the whole model with only some stretches along one dimension (`parameter_of_rank`). Families, file formats
and kernels know nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from penstock.core.errors import ConfigError
from penstock.models.families.family import WeightNames
from penstock.models.parameters import Index, Parameter, Part, parameters_of
from penstock.models.spec import (
    AttentionSpec,
    DenseSpec,
    ExpertsSpec,
    LatentAttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    Run,
    Shard,
)
from penstock.ops.activation import Activation


def spec_of_rank(spec: ModelSpec, shard: Shard) -> ModelSpec:
    """The model that one rank runs. Raises ConfigError, naming every count that does not divide."""
    if shard.size == 1:
        return spec
    wrong = sorted({problem for layer in spec.layers for problem in _problems(layer, shard.size)})
    if wrong:
        raise ConfigError(
            f"--tensor-parallel {shard.size} does not divide this model: {'; '.join(wrong)}. "
            "Every rank takes as many; give a divisor of all of them"
        )
    return replace(spec, layers=tuple(_layer_of_rank(layer, shard) for layer in spec.layers))


def rank_parameters(spec: ModelSpec, names: WeightNames, shard: Shard) -> Iterator[Parameter]:
    """Every parameter of one rank. spec: of the whole model."""
    for parameter in parameters_of(spec, names):
        yield parameter_of_rank(parameter, spec, shard)


def parameter_of_rank(parameter: Parameter, spec: ModelSpec, shard: Shard) -> Parameter:
    """What one rank holds of a parameter of the whole model."""
    if shard.size == 1:
        return parameter
    cut = _cut_of(parameter, spec, shard)
    return parameter if cut is None else _cut(parameter, cut)


def part_of_rank(tensor: Tensor, parameter: Parameter, spec: ModelSpec, shard: Shard) -> Tensor:
    """What one rank holds of the tensor of a whole parameter; a copy, where that is not all of it."""
    cut = None if shard.size == 1 else _cut_of(parameter, spec, shard)
    if cut is None:
        return tensor
    kept = [tensor.narrow(cut.dim, start, stop - start) for start, stop in cut.runs]
    missing = 0 if cut.length is None else cut.length - sum(stop - start for start, stop in cut.runs)
    shape = (*tensor.shape[: cut.dim], missing, *tensor.shape[cut.dim + 1 :])
    return torch.cat((*kept, tensor.new_zeros(shape)), cut.dim)


@dataclass(frozen=True, slots=True)
class Cut:
    """The rank's tensor is these stretches of one dimension, one behind the other; zeros where there are too few.

    length: of that dimension on a rank; None: as long as the stretches.
    """

    dim: int
    runs: tuple[Run, ...]
    length: int | None = None


def _problems(layer: LayerSpec, size: int) -> Iterator[str]:
    attention, mlp = layer.attention, layer.mlp
    counts = [("attention heads", attention.q_heads)]
    if isinstance(mlp, DenseSpec):
        counts.append(("features of the MLP", mlp.width))
    else:
        counts.append(("features of an expert", mlp.width))
        counts += [] if mlp.shared is None else [("features of the shared expert", mlp.shared.width)]
    yield from (f"it has {n} {what}" for what, n in counts if n % size)
    kv_heads = attention.kv_heads
    if kv_heads % size and size % kv_heads:
        yield f"it has {kv_heads} KV heads"


def _layer_of_rank(layer: LayerSpec, shard: Shard) -> LayerSpec:
    attention = layer.attention
    q_heads = attention.q_heads // shard.size
    match attention:
        case AttentionSpec():
            first, stop = shard.kv_run(attention.kv_heads)
            attention = replace(attention, q_heads=q_heads, kv_heads=stop - first)
        case LatentAttentionSpec():
            attention = replace(attention, q_heads=q_heads)
    return replace(layer, attention=attention, mlp=_mlp_of_rank(layer.mlp, shard))


def _mlp_of_rank(mlp: MlpSpec, shard: Shard) -> MlpSpec:
    match mlp:
        case DenseSpec():
            return replace(mlp, width=mlp.width // shard.size)
        case ExpertsSpec():
            shared = None if mlp.shared is None else replace(mlp.shared, width=mlp.shared.width // shard.size)
            return replace(mlp, width=mlp.width // shard.size, shared=shared)


def _cut_of(parameter: Parameter, spec: ModelSpec, shard: Shard) -> Cut | None:
    """How a parameter is cut; None: every rank holds all of it."""
    if parameter.name in ("embed", "head"):
        rows = shard.vocab_rows(spec.vocab_size)
        start = min(shard.rank * rows, spec.vocab_size)
        return Cut(0, ((start, min(start + rows, spec.vocab_size)),), rows)
    if parameter.name.endswith((".out_bias", ".down_bias")) and shard.rank > 0:  # added to a sum over ranks: once
        return Cut(len(parameter.shape) - 1, (), parameter.shape[-1])
    if parameter.name == "final_norm":
        return None
    _, index, half, *rest = parameter.name.split(".")
    layer = spec.layers[int(index)]
    if half == "attention":
        return _cut_of_attention(rest[-1], layer.attention, shard)
    if half == "mlp":
        mlp = layer.mlp
        if rest[0] == "shared" and isinstance(mlp, ExpertsSpec) and mlp.shared is not None:
            mlp = mlp.shared
        return _cut_of_mlp(rest[-1], mlp, len(parameter.shape), shard)
    return None


def _cut_of_attention(name: str, spec: AttentionSpec | LatentAttentionSpec, shard: Shard) -> Cut | None:
    heads, dim = spec.q_heads, spec.head_dim
    if isinstance(spec, LatentAttentionSpec):
        match name:
            case "q":
                return Cut(0, (shard.run(heads * (spec.nope_dim + spec.rope.dim)),))
            case "kv_b":
                return Cut(0, (shard.run(heads * (spec.nope_dim + spec.v_dim)),))
            case "out":
                return Cut(1, (shard.run(heads * spec.v_dim),))
        return None
    q_run, kv_run = shard.run(heads), shard.kv_run(spec.kv_heads)
    match name:
        case "qkv" | "qkv_bias":
            bounds = q_run, _moved(kv_run, heads), _moved(kv_run, heads + spec.kv_heads)
            return Cut(0, tuple((first * dim, stop * dim) for first, stop in bounds))
        case "qk_norm":
            return Cut(0, (q_run, _moved(kv_run, heads)))
        case "q_norm":
            return Cut(0, ((q_run[0] * dim, q_run[1] * dim),))
        case "k_norm":
            return Cut(0, ((kv_run[0] * dim, kv_run[1] * dim),))
        case "sinks":
            return Cut(0, (q_run,))
        case "out":
            return Cut(1, (shard.run(heads * dim),))
    return None


def _moved(run: Run, by: int) -> Run:
    return run[0] + by, run[1] + by


def _cut_of_mlp(name: str, spec: MlpSpec, n_dims: int, shard: Shard) -> Cut | None:
    """The dimensions of a matrix are the last two, behind that of experts."""
    width = spec.width
    is_mixed = spec.activation is Activation.CLAMPED_SWIGLU  # its gates and ups take turns
    gate_up = (shard.run(2 * width),) if is_mixed else (shard.run(width), shard.run(width, first=width))
    match name:
        case "gate_up":
            return Cut(n_dims - 2, gate_up)
        case "gate_up_bias":
            return Cut(n_dims - 1, gate_up)
        case "down":
            return Cut(n_dims - 1, (shard.run(width),))
    return None


def _cut(parameter: Parameter, cut: Cut) -> Parameter:
    """The parameter with only these stretches, and its parts with what of each is needed."""
    parts: list[Part] = []
    at = 0
    for run in cut.runs:
        parts += [piece for part in parameter.parts if (piece := _piece(part, parameter.shape, cut.dim, run, at))]
        at += run[1] - run[0]
    length = at if cut.length is None else cut.length
    shape = (*parameter.shape[: cut.dim], length, *parameter.shape[cut.dim + 1 :])
    return Parameter(parameter.name, shape, tuple(parts), is_covered=at == length)


def _piece(part: Part, whole: tuple[int, ...], dim: int, run: Run, at: int) -> Part | None:
    """What of `part` lies in `run` of dimension `dim`, which begins at `at` on the rank; None: nothing."""
    index = [*part.index, *(slice(None) for _ in whole[len(part.index) :])]
    place = index[dim]
    assert isinstance(place, slice), "a dimension that parts name by number (experts) is not cut"
    start, stop, _ = place.indices(whole[dim])
    first, last = max(start, run[0]), min(stop, run[1])
    if first >= last:
        return None
    index[dim] = slice(at + first - run[0], at + last - run[0])
    return replace(part, index=tuple(index), take=_taken(part, index, dim, slice(first - start, last - start)))


def _taken(part: Part, index: list[int | slice], dim: int, places: slice) -> Index:
    """The same places in the checkpoint's tensor, whose last dimensions are those of `parameter[index]`."""
    kept = [d for d, place in enumerate(index) if isinstance(place, slice)]
    from_end = len(kept) - kept.index(dim)
    if part.is_transposed and from_end <= 2:
        from_end = 3 - from_end
    if from_end > len(part.shape):
        return ()  # it broadcasts along this dimension
    take: list[int | slice] = [slice(None)] * len(part.shape)
    take[-from_end] = places
    return tuple(take)
