"""Shape letters: T tokens, H heads (queries, then keys, then values), D head dim, N heads of queries and keys,
R rotated pairs (2R <= D).
"""

from __future__ import annotations

from torch import Tensor

from penstock.ops.rms_norm import reference as rms_norm
from penstock.ops.rope import reference as rope
from penstock.ops.write_kv import reference as write_kv


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
    """Norm and rotate queries and keys, and store keys and values of a step in the pool of one layer.

    Args:
        qkv_THD: any float dtype.
        kv, slots_T: see `write_kv`; the pool says how many KV heads there are.
        norm_ND, eps, is_centered: see `rms_norm`; None: no norm on queries and keys.
        cos_TR, sin_TR: see `rope`; None: no positions.
    Returns: the queries.
    Source: each step as in the op it names; one pass over the projection instead of three.
    """
    n_qk = qkv_THD.shape[1] - kv.shape[3]
    qk_TND = qkv_THD[:, :n_qk]
    if norm_ND is not None:
        qk_TND = rms_norm.rms_norm(qk_TND, norm_ND, eps, None, is_centered)[0]
    if cos_TR is not None and sin_TR is not None:
        qk_TND = rope.rope(qk_TND, cos_TR, sin_TR)
    q_TQD, k_TKD = qk_TND.tensor_split((n_qk - kv.shape[3],), dim=1)
    write_kv.write_kv(k_TKD, qkv_THD[:, n_qk:], kv, slots_T)
    return q_TQD
