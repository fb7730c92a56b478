"""A decoder layer as one call into the C++ kernels, for the layers that they know from end to end.

The truth is `Layer.__call__`, op by op; this gives the same bits (`tests/models/test_fused.py`) without some ten calls
and as many waits of threads per layer: 12 of 33 ms of a decode step of one token of Qwen3-0.6B in int8 were those.

Shape letters: T tokens of the step, D hidden size.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.models.parts import Angles, Scope
from penstock.models.softmax import LayerAttention, UnifiedSoftmax
from penstock.models.spec import AttentionSpec, DenseSpec, LayerSpec, NormPlace, NormSpec, QkNorm
from penstock.ops import native
from penstock.ops.activation import Activation
from penstock.ops.batch import SegmentBatch
from penstock.ops.packed import PackedWeight
from penstock.ops.paged_attention.native import is_served_heads, levelled, live_segments
from penstock.ops.tuned import few_rows_form
from penstock.ops.unified_attention.native import described


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedLayer:
    """weights: pointers to tensors of `scope`, which must outlive this."""

    attention: AttentionSpec
    weights: native.LayerWeights
    dtype: torch.dtype
    softmax: UnifiedSoftmax | None
    unified: native.Unified | None  # the same for the kernels
    tokens_stop: float  # from so many on, another implementation of one of its matrices is faster

    @classmethod
    def of(
        cls, layer: LayerSpec, norm: NormSpec, scope: Scope, paged: LayerAttention | None = None
    ) -> FusedLayer | None:
        """None for a layer that the kernels do not know, or that was not packed for them."""
        if paged is not None and not isinstance(paged, UnifiedSoftmax):
            return None
        attention, mlp = layer.attention, layer.mlp
        if native.core("layer") is None or not isinstance(attention, AttentionSpec) or not isinstance(mlp, DenseSpec):
            return None
        if layer.norms is not NormPlace.BEFORE or norm.is_centered or mlp.activation is not Activation.SILU:
            return None
        if attention.has_sinks or attention.qk_norm is QkNorm.PROJECTION:
            return None
        if not is_served_heads(attention.q_heads, attention.kv_heads, attention.head_dim):
            return None
        forms = {name: few_rows_form(scope[f"{where}.{name}"]) for where, name in MATRICES}
        matrices = {name: matrix for name, (matrix, _) in forms.items()}
        dtype = scope["input_norm"].dtype
        if dtype not in native.DTYPES or not all(_is_packed(matrix, dtype) for matrix in matrices.values()):
            return None
        weights = native.LayerWeights(
            input_norm=scope["input_norm"].data_ptr(),
            mlp_norm=scope["mlp_norm"].data_ptr(),
            qk_norm=_pointer(scope.get("attention.qk_norm")),
            hidden=scope["input_norm"].shape[0],
            heads=attention.q_heads,
            kv_heads=attention.kv_heads,
            dim=attention.head_dim,
            window=attention.window_tokens or 0,
            eps=norm.eps,
            scale=attention.scale,
            cap=attention.soft_cap or 0.0,
            **{name: _with_bias(matrices[name], scope.get(f"{where}.{name}_bias")) for where, name in MATRICES},
        )
        stops = [stop for _, stop in forms.values() if stop is not None]
        return cls(
            attention=attention,
            weights=weights,
            dtype=dtype,
            softmax=paged,
            unified=None if paged is None else described(paged.unified, paged.fallbacks),
            tokens_stop=min(stops, default=math.inf),
        )

    def serves(self, x_TD: Tensor, batch: SegmentBatch, kv: Tensor) -> bool:
        """These tensors are as the kernel reads them and not too many, and no sinks are read beside the window."""
        is_ours = batch.sinks is None and native.is_served(x_TD, kv) and x_TD.dtype is self.dtype
        return is_ours and 0 < len(x_TD) < self.tokens_stop and kv.is_contiguous() and batch.tables_SB.is_contiguous()

    def __call__(
        self, x_TD: Tensor, change_TD: Tensor | None, batch: SegmentBatch, kv: Tensor, angles: Angles
    ) -> tuple[Tensor, Tensor]:
        """As `Layer.__call__`."""
        core = native.core("layer")
        assert core is not None, "a fused layer exists only where the kernels are loaded"
        if self.unified is not None and self.softmax is not None:
            is_on = self.softmax.is_on and batch.is_decode
            self.weights.unified = ctypes.addressof(self.unified) if is_on else None
        x_TD = x_TD.contiguous()
        change_TD = None if change_TD is None else change_TD.contiguous()
        total_TD, next_change_TD = torch.empty_like(x_TD), torch.empty_like(x_TD)
        segments_S4, _ = live_segments(batch.q_starts_host, batch.kv_lens_host)
        step = native.LayerStep(
            x=x_TD.data_ptr(),
            change=_pointer(change_TD),
            kv=kv.data_ptr(),
            slots=batch.slots_T.data_ptr(),
            tables=batch.tables_SB.data_ptr(),
            segments=segments_S4.data_ptr(),
            total=total_TD.data_ptr(),
            next_change=next_change_TD.data_ptr(),
            tokens=len(x_TD),
            n_blocks=kv.shape[1],
            block_tokens=batch.block_tokens,
            table_width=batch.tables_SB.shape[1],
            n_segments=len(segments_S4),
            threads=torch.get_num_threads(),
        )
        if batch.shared is not None:
            runs_R5, run_tables, members_M = levelled(batch.shared)
            step.runs, step.n_runs, step.run_tables = runs_R5.data_ptr(), len(runs_R5), run_tables.data_ptr()
            step.members = members_M.data_ptr()
        if self.attention.rope is not None:
            cos_TR, sin_TR = angles.tokens[self.attention.rope]
            step.cosines, step.sines, step.pairs = cos_TR.data_ptr(), sin_TR.data_ptr(), cos_TR.shape[1]
        core.layer(x_TD.dtype is torch.bfloat16, ctypes.addressof(self.weights), ctypes.addressof(step))
        return total_TD, next_change_TD


MATRICES = (("attention", "qkv"), ("attention", "out"), ("mlp", "gate_up"), ("mlp", "down"))


def _is_packed(matrix: Tensor, dtype: torch.dtype) -> bool:
    if not isinstance(matrix, PackedWeight):
        return False
    return matrix.compute_dtype is dtype and matrix.described.k == matrix.inputs


def _with_bias(matrix: Tensor, bias: Tensor | None) -> native.Weight:
    assert isinstance(matrix, PackedWeight)
    described = native.Weight.from_buffer_copy(matrix.described)
    described.bias = _pointer(bias)
    return described


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
