"""The steps one by one, each in its fastest form."""

from __future__ import annotations

from torch import Tensor

from penstock.ops.rms_norm import rms_norm
from penstock.ops.rope import rope
from penstock.ops.write_kv import write_kv


def rope_and_store(
    qkv_THD: Tensor,
    kv: Tensor,
    slots_T: Tensor,
    norm_ND: Tensor | None = None,
    eps: float = 0.0,
    is_centered: bool = False,
    cos_TR: Tensor | None = None,
    sin_TR: Tensor | None = None,
) -> Tensor:
    """See `reference.rope_and_store`."""
    n_qk = qkv_THD.shape[1] - kv.shape[3]
    qk_TND = qkv_THD[:, :n_qk]
    if norm_ND is not None:
        qk_TND = rms_norm(qk_TND, norm_ND, eps, None, is_centered)[0]
    if cos_TR is not None and sin_TR is not None:
        qk_TND = rope(qk_TND, cos_TR, sin_TR)
    q_TQD, k_TKD = qk_TND.tensor_split((n_qk - kv.shape[3],), dim=1)
    write_kv(k_TKD, qkv_THD[:, n_qk:], kv, slots_T)
    return q_TQD
