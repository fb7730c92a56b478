"""A copy per token, keys and values together."""

from __future__ import annotations

from torch import Tensor

from penstock.ops.native import core, is_served
from penstock.ops.write_kv import reference


def write_kv(k_THD: Tensor, v_THD: Tensor, kv: Tensor, slots_T: Tensor) -> None:
    """See `reference.write_kv`."""
    library = core("write_kv")
    head_dim = kv.shape[-1]
    is_row = k_THD.stride(1) == head_dim and v_THD.stride(1) == head_dim
    if library is None or not is_row or not is_served(k_THD, v_THD, kv) or not kv.is_contiguous():
        reference.write_kv(k_THD, v_THD, kv, slots_T)
        return
    item_bytes = kv.element_size()
    library.write_kv(
        k_THD.data_ptr(),
        v_THD.data_ptr(),
        k_THD.stride(0) * item_bytes,
        v_THD.stride(0) * item_bytes,
        kv.shape[3] * head_dim * item_bytes,
        kv.data_ptr(),
        kv.nbytes // 2,
        slots_T.data_ptr(),
        len(slots_T),
    )
