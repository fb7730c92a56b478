"""One decoder for every model: what differs between families is in the `ModelSpec`.

The residual stream enters and leaves `run_layers` whole, so that a pass can stop at any layer and go on later, with
other work between. Within a call, adding to it waits for the next norm: the two are one kernel.

Shape letters: T tokens of the step, N rows that want logits, D hidden size, V vocabulary, H heads (queries, then keys,
then values in a fused projection), d head dim.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812, the name that everybody reads
from torch import Tensor

from penstock.core.errors import UnsupportedModel
from penstock.core.executor import ModelFacts, StateKind, StateSpec
from penstock.models.rope import Rotation
from penstock.models.spec import AttentionSpec, DenseSpec, ExpertsSpec, LayerSpec, MlpSpec, ModelSpec, RopeSpec
from penstock.ops.batch import SegmentBatch
from penstock.ops.experts import experts
from penstock.ops.gated_silu import gated_silu
from penstock.ops.paged_attention import paged_attention
from penstock.ops.rms_norm import rms_norm
from penstock.ops.rope import rope
from penstock.ops.route import route
from penstock.ops.write_kv import write_kv

log = logging.getLogger(__name__)

OPS = (rms_norm, rope, write_kv, paged_attention, gated_silu, route, experts)
Angles = Mapping[RopeSpec, tuple[Tensor, Tensor]]


class Decoder:
    """A model with its weights. Callers hold `torch.inference_mode`.

    tensors: every parameter that `parameters_of(spec)` names, all of one dtype and on one device.
    """

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, Tensor]) -> None:
        self.spec = spec
        self.tensors = tensors
        self._embed = tensors["embed"]
        self._layers = tuple(_Layer.of(layer, spec, tensors, f"layers.{i}") for i, layer in enumerate(spec.layers))
        self._final_norm = tensors["final_norm"]
        self._head = tensors["embed" if spec.is_tied else "head"]
        ropes = {layer.attention.rope for layer in spec.layers}
        self._rotations = {spec: Rotation.of(spec, self.device) for spec in ropes if spec is not None}
        log.info("ops on %s: %s", self.device, ", ".join(f"{op.name} {op.on(self.device)}" for op in OPS))

    @property
    def device(self) -> torch.device:
        return self._embed.device

    @property
    def dtype(self) -> torch.dtype:
        return self._embed.dtype

    def embed(self, ids_T: Tensor) -> Tensor:
        """Token ids to the residual stream before the first layer: [T, D]."""
        return F.embedding(ids_T, self._embed)

    def run_layers(self, x_TD: Tensor, batch: SegmentBatch, kv: Sequence[Tensor], first: int, stop: int) -> Tensor:
        """The residual stream after layers [first, stop).

        Args:
            x_TD: the residual stream before layer `first`.
            kv: by layer, [2, n_blocks, block_tokens, KV heads, head_dim]; this step's keys and values are written at
                `batch.slots_T`, then attention reads.
        """
        # once per step, not per layer: nearly always all layers rotate alike
        angles = {spec: rotation.angles(batch.positions_T) for spec, rotation in self._rotations.items()}
        change_TD: Tensor | None = None  # what the layer before adds to the stream, not yet added
        for index in range(first, stop):
            layer = self._layers[index]
            normed_TD, x_TD = rms_norm(x_TD, layer.input_norm, layer.eps, change_TD)
            mixed_TD = layer.attention(normed_TD, batch, kv[index], angles)
            normed_TD, x_TD = rms_norm(mixed_TD, layer.mlp_norm, layer.eps, x_TD)
            change_TD = layer.mlp(normed_TD)
        return x_TD if change_TD is None else x_TD + change_TD

    def logits(self, x_ND: Tensor) -> Tensor:
        """Final norm and head: float32 [N, V]."""
        normed_ND, _ = rms_norm(x_ND, self._final_norm, self.spec.norm_eps)
        return F.linear(normed_ND, self._head).float()

    def state_specs(self, block_tokens: int, kv_dtype: torch.dtype) -> tuple[StateSpec, ...]:
        """The state groups of the model: all layers in one paged group."""
        sizes = {(layer.attention.kv_heads, layer.attention.head_dim) for layer in self.spec.layers}
        assert len(sizes) == 1, f"layers with states of different shapes need a group each: {sizes}"
        kv_heads, head_dim = sizes.pop()
        layer_bytes = 2 * block_tokens * kv_heads * head_dim * kv_dtype.itemsize
        layers = tuple(range(len(self.spec.layers)))
        return (
            StateSpec(
                name="kv",
                kind=StateKind.PAGED,
                layers=layers,
                block_tokens=block_tokens,
                block_bytes=layer_bytes * len(layers),
            ),
        )

    def facts(self, name: str, block_tokens: int = 16, kv_dtype: torch.dtype | None = None) -> ModelFacts:
        """What decisions need to know. kv_dtype None: that of the weights."""
        return ModelFacts(
            name=name,
            n_layers=len(self.spec.layers),
            vocab_size=self.spec.vocab_size,
            max_model_tokens=self.spec.max_position_tokens,
            stop_token_ids=self.spec.stop_token_ids,
            states=self.state_specs(block_tokens, kv_dtype or self.dtype),
            weight_bytes=sum(tensor.nbytes for tensor in self.tensors.values()),
        )


class _Mlp(Protocol):
    def __call__(self, x_TD: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attention:
    spec: AttentionSpec
    eps: float
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    out: Tensor
    out_bias: Tensor | None

    @classmethod
    def of(cls, spec: AttentionSpec, eps: float, tensors: Mapping[str, Tensor], prefix: str) -> _Attention:
        if spec.window_tokens is not None:
            raise UnsupportedModel(f"{prefix}: a window of {spec.window_tokens} tokens; supported: full attention")
        return cls(
            spec=spec,
            eps=eps,
            qkv=tensors[f"{prefix}.qkv"],
            qkv_bias=tensors.get(f"{prefix}.qkv_bias"),
            qk_norm=tensors.get(f"{prefix}.qk_norm"),
            out=tensors[f"{prefix}.out"],
            out_bias=tensors.get(f"{prefix}.out_bias"),
        )

    def __call__(self, x_TD: Tensor, batch: SegmentBatch, kv: Tensor, angles: Angles) -> Tensor:
        spec, n_qk = self.spec, self.spec.q_heads + self.spec.kv_heads
        qkv_THd = F.linear(x_TD, self.qkv, self.qkv_bias).view(len(x_TD), -1, spec.head_dim)
        qk_THd, v_THd = qkv_THd[:, :n_qk], qkv_THd[:, n_qk:]
        if self.qk_norm is not None:
            qk_THd, _ = rms_norm(qk_THd, self.qk_norm, self.eps)
        if spec.rope is not None:
            qk_THd = rope(qk_THd, *angles[spec.rope])
        write_kv(qk_THd[:, spec.q_heads :], v_THd, kv, batch.slots_T)
        out_THd, _ = paged_attention(qk_THd[:, : spec.q_heads], kv, batch, spec.scale)
        return F.linear(out_THd.flatten(1), self.out, self.out_bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dense:
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None

    def __call__(self, x_TD: Tensor) -> Tensor:
        return F.linear(gated_silu(F.linear(x_TD, self.gate_up, self.gate_up_bias)), self.down, self.down_bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Experts:
    spec: ExpertsSpec
    router: Tensor
    gate_up: Tensor
    down: Tensor

    def __call__(self, x_TD: Tensor) -> Tensor:
        weights_TK, experts_TK = route(F.linear(x_TD, self.router), self.spec.top_k, self.spec.is_normalized)
        return experts(x_TD, self.gate_up, self.down, weights_TK, experts_TK)


def _mlp(spec: MlpSpec, tensors: Mapping[str, Tensor], prefix: str) -> _Mlp:
    gate_up, down = tensors[f"{prefix}.gate_up"], tensors[f"{prefix}.down"]
    match spec:
        case DenseSpec():
            gate_up_bias, down_bias = tensors.get(f"{prefix}.gate_up_bias"), tensors.get(f"{prefix}.down_bias")
            return _Dense(gate_up=gate_up, gate_up_bias=gate_up_bias, down=down, down_bias=down_bias)
        case ExpertsSpec():
            return _Experts(spec=spec, router=tensors[f"{prefix}.router"], gate_up=gate_up, down=down)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    eps: float
    input_norm: Tensor
    attention: _Attention
    mlp_norm: Tensor
    mlp: _Mlp

    @classmethod
    def of(cls, layer: LayerSpec, spec: ModelSpec, tensors: Mapping[str, Tensor], prefix: str) -> _Layer:
        return cls(
            eps=spec.norm_eps,
            input_norm=tensors[f"{prefix}.input_norm"],
            attention=_Attention.of(layer.attention, spec.norm_eps, tensors, f"{prefix}.attention"),
            mlp_norm=tensors[f"{prefix}.mlp_norm"],
            mlp=_mlp(layer.mlp, tensors, f"{prefix}.mlp"),
        )
