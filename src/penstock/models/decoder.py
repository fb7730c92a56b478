"""One decoder for every model: what differs between families is in the `ModelSpec`.

The residual stream enters and leaves `run_layers` whole, so that a pass can stop at any layer and go on later, with
other work between. Within a call, adding to it waits for the next norm: the two are one kernel.

Shape letters: T tokens of the step, N rows that want logits, D hidden size, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812, the name that everybody reads
from torch import Tensor

from penstock.models.layers import Layer
from penstock.models.parts import Angles, Entrance, Norm, Rotated, Scope
from penstock.models.peers import Peers
from penstock.models.rope import Rotation
from penstock.models.softmax import LayerAttentions
from penstock.models.spec import AttentionSpec, ExpertsSpec, ModelSpec
from penstock.ops.add_sink import add_sink
from penstock.ops.batch import SegmentBatch
from penstock.ops.entry_linear import entry_linear
from penstock.ops.experts import experts
from penstock.ops.gated import GATED
from penstock.ops.op import Op
from penstock.ops.packed import PackedWeight
from penstock.ops.packed_linear import packed_linear
from penstock.ops.paged_attention import paged_attention
from penstock.ops.paged_attention.native import is_served_heads
from penstock.ops.quantized import QuantizedWeight
from penstock.ops.quantized_linear import quantized_linear
from penstock.ops.rms_norm import rms_norm
from penstock.ops.rope import rope
from penstock.ops.rope_and_store import rope_and_store
from penstock.ops.rope_angles import rope_angles
from penstock.ops.route import route
from penstock.ops.sample import sample
from penstock.ops.shared_attention import shared_attention
from penstock.ops.sink_attention import sink_attention
from penstock.ops.tuned import TunedWeight
from penstock.ops.write_kv import write_kv

log = logging.getLogger(__name__)

OPS: tuple[Op[..., Any], ...] = (
    rms_norm, entry_linear, rope_angles, rope, write_kv, rope_and_store, paged_attention, shared_attention,
    sink_attention, add_sink, *GATED.values(), route, experts, sample,
)  # fmt: skip
MOST_CAPTURED_HEAD_DIM = 256  # the paged attention in Triton has no wider heads


class Decoder:
    """A model with its weights, or one rank's share of it. Callers hold `torch.inference_mode`.

    tensors: every parameter that `parameters_of(spec)` names, all of one dtype and on one device. peers: the ranks that
    have the rest (`sharding.py`); all of them go through the same passes. attentions: by layer, what attends to the
    keys in the pool; None: `paged_attention`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tensors: Mapping[str, Tensor],
        peers: Peers | None = None,
        attentions: LayerAttentions | None = None,
    ) -> None:
        self.spec = spec
        self.tensors = tensors
        self._peers = peers
        self._embed = tensors["embed"]
        self._embed_scale = torch.tensor(spec.embed_scale, dtype=self._embed.dtype).item()  # rounded, as it was trained
        self._attentions = attentions
        paged = (None,) * len(spec.layers) if attentions is None else attentions.layers
        self._layers = tuple(
            Layer.of(layer, spec.norm, Scope(tensors, f"layers.{index}"), peers, of_layer)
            for index, (layer, of_layer) in enumerate(zip(spec.layers, paged, strict=True))
        )
        self._final_norm = Norm(tensors["final_norm"], spec.norm)
        self._head = tensors["embed" if spec.is_tied else "head"]
        ropes = [layer.attention.rope for layer in spec.layers]
        self._ropes = tuple(dict.fromkeys(rope for rope in ropes if rope is not None))
        self._rope_of = tuple(None if rope is None else self._ropes.index(rope) for rope in ropes)
        self._rotations = tuple(Rotation.of(rope, self.device) for rope in self._ropes)
        self.kernels = self._kernels()
        log.info("kernels on %s: %s", self.device, ", ".join(f"{op} {file}" for op, file in self.kernels.items()))

    def _kernels(self) -> Mapping[str, str]:
        """What computes each op that this model has, on its device: the name of an implementation (see `Op`).

        layer: "native" if one call runs a whole layer, else "op by op", or how many of each.
        """
        layers = self.spec.layers
        n_fused = sum(layer.fused is not None for layer in self._layers)
        found = {
            "layer": {0: "op by op", len(layers): "native"}.get(n_fused, f"native {n_fused} of {len(layers)}"),
            "linear": self._linear_kernel(),
        }
        for op in (op for op in OPS if op.name in _ops_of(self.spec)):
            found[op.name] = op.on(self.device)
        if self.spec.norm.is_centered and found["rms_norm"] == "native":
            found["rms_norm"] = "reference"
        heads = {(a.q_heads, a.kv_heads, a.head_dim) for a in (layer.attention for layer in layers)}
        if found["paged_attention"] == "native" and not all(is_served_heads(*shape) for shape in heads):
            found |= {name: "cpu" for name in ("paged_attention", "shared_attention") if name in found}
        return found

    def _linear_kernel(self) -> str:
        """What multiplies by the first layer's matrices."""
        if any(isinstance(tensor, TunedWeight) for tensor in self.tensors.values()):
            return "by table"
        weight = self.tensors["layers.0.attention.out"]
        if isinstance(weight, PackedWeight):
            return packed_linear.on(self.device)
        return quantized_linear.on(self.device) if isinstance(weight, QuantizedWeight) else "torch"

    @property
    def device(self) -> torch.device:
        return self._embed.device

    @property
    def dtype(self) -> torch.dtype:
        return self._embed.dtype

    def attending_by(self, attentions: LayerAttentions) -> Decoder:
        """The same model, of the same tensors, whose layers attend otherwise."""
        return Decoder(self.spec, self.tensors, self._peers, attentions)

    def review(self) -> bool:
        """Whether some layer computes otherwise from now on; asked every few hundred steps."""
        return self._attentions is not None and bool(self._attentions.review())

    @property
    def why_not_captured(self) -> str | None:
        """What keeps a decode step of this model out of a CUDA graph: kernels that ask the host on their way."""
        if paged_attention.on(self.device) == "reference":
            return "Triton is not installed"
        if any(layer.attention.head_dim > MOST_CAPTURED_HEAD_DIM for layer in self.spec.layers):
            return f"heads of more than {MOST_CAPTURED_HEAD_DIM} features run the reference of paged attention"
        return None

    @property
    def has_peers(self) -> bool:
        """Other ranks hold the rest of it."""
        return self._peers is not None

    @property
    def tile_tokens(self) -> int | None:
        """How many tokens of a prompt one program of the paged attention in Triton takes; None: layers differ."""
        from penstock.ops.paged_attention.triton import tile_tokens  # is there beside a GPU only

        found = {tile_tokens(layer.attention.head_dim, self.dtype) for layer in self.spec.layers}
        return found.pop() if len(found) == 1 else None

    def embed(self, ids_T: Tensor) -> Tensor:
        """Token ids to the residual stream before the first layer: [T, D]."""
        x_TD = F.embedding(ids_T, self._embed) if self._peers is None else self._embed_with(self._peers, ids_T)
        return x_TD if self._embed_scale == 1.0 else x_TD * self._embed_scale

    def _embed_with(self, peers: Peers, ids_T: Tensor) -> Tensor:
        """Every rank has some rows of the embedding and adds zeros for the others."""
        n_rows = self._embed.shape[0]
        ours_T = ids_T - peers.shard.rank * n_rows
        is_ours_T = (ours_T >= 0) & (ours_T < n_rows)
        x_TD = F.embedding(ours_T.clamp(0, n_rows - 1), self._embed)
        return peers.sum(x_TD.masked_fill(~is_ours_T.unsqueeze(1), 0))

    def run_layers(self, x_TD: Tensor, batch: SegmentBatch, kv: Sequence[Tensor], first: int, stop: int) -> Tensor:
        """The residual stream after layers [first, stop).

        Args:
            x_TD: the residual stream before layer `first`.
            kv: by layer, [2, n_blocks, block_tokens, KV heads, head_dim]; this step's keys and values are written at
                `batch.slots_T`, then attention reads.
        """
        if first == stop:
            return x_TD
        x_TD, change_TD = self._run(x_TD, (batch,) * stop, kv, first, stop)
        return x_TD if change_TD is None else x_TD + change_TD

    def run_whole(
        self, x_TD: Tensor, batches: Sequence[SegmentBatch], kv: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """After all layers: (residual stream, what is still to be added to it). batches: by layer, the same tokens."""
        return self._run(x_TD, batches, kv, 0, len(self._layers))

    def _run(
        self, x_TD: Tensor, batches: Sequence[SegmentBatch], kv: Sequence[Tensor], first: int, stop: int
    ) -> tuple[Tensor, Tensor | None]:
        # once per pass, not per layer: nearly always all layers rotate alike
        tokens = self._rotated(batches[first].positions_T, first, stop)
        angles: dict[int, Angles] = {}  # by state group: the sinks of each stand elsewhere
        change_TD: Tensor | None = None  # what the layer before adds to the stream, not yet added
        for index in range(first, stop):
            batch = batches[index]
            if id(batch) not in angles:
                sinks = {} if batch.sinks is None else self._rotated(batch.sinks.positions_T, first, stop)
                angles[id(batch)] = Angles(tokens=tokens, sinks=sinks)
            x_TD, change_TD = self._layers[index](x_TD, change_TD, batch, kv[index], angles[id(batch)])
        return x_TD, change_TD

    def _rotated(self, positions_T: Tensor, first: int, stop: int) -> Rotated:
        """As layers [first, stop) rotate: where windows and full attention take turns, each has its own frequencies."""
        found = dict.fromkeys(self._rope_of[first:stop])
        return {self._ropes[at]: self._rotations[at].angles(positions_T) for at in found if at is not None}

    def logits(self, x_ND: Tensor, change_ND: Tensor | None = None) -> Tensor:
        """Final norm and head: float32 [N, V]. change_ND: what is still to be added to the residual stream."""
        return self.logits_to_draw(x_ND, change_ND).float()

    def logits_to_draw(self, x_ND: Tensor, change_ND: Tensor | None = None) -> Tensor:
        """The same numbers in the dtype in which the head gave them, where nothing else is to be done to them."""
        logits_NV = Entrance(x_ND, change_ND, self._final_norm).linear(self._head, None)[0]
        if self._peers is not None:  # behind the vocabulary stand the rows that fill the last rank's share up
            logits_NV = self._peers.side_by_side(logits_NV)[:, : self.spec.vocab_size].contiguous()
        cap = self.spec.logit_soft_cap
        return logits_NV if cap is None else logits_NV.float().div_(cap).tanh_().mul_(cap)


def _ops_of(spec: ModelSpec) -> set[str]:
    """Names of the ops that a model calls."""
    names = {rms_norm.name, write_kv.name, paged_attention.name}
    for layer in spec.layers:
        attention, mlp = layer.attention, layer.mlp
        names |= {rope.name, rope_angles.name} if attention.rope is not None else set()
        names |= {sink_attention.name} if attention.sink_tokens else set()
        names |= {shared_attention.name} if attention.window_tokens is None else set()
        names |= {add_sink.name} if isinstance(attention, AttentionSpec) and attention.has_sinks else set()
        names |= {route.name, experts.name} if isinstance(mlp, ExpertsSpec) else set()
        names.add(GATED[mlp.activation].name)
    return names
