"""Shape letters: T tokens, H KV heads, D head dim."""

from __future__ import annotations

from torch import Tensor


def write_kv(k_THD: Tensor, v_THD: Tensor, kv: Tensor, slots_T: Tensor) -> None:
    """Store keys and values of a step in the pool of one layer, in place.

    Args:
        k_THD, v_THD: any float dtype; converted to the pool's.
        kv: [2, n_blocks, block_tokens, H, D], keys then values.
        slots_T: int64, block * block_tokens + offset. Rows of one slot overwrite each other in any order.
    """
    slots = kv.view(2, -1, *kv.shape[3:])
    slots[0].index_copy_(0, slots_T, k_THD.to(kv.dtype))
    slots[1].index_copy_(0, slots_T, v_THD.to(kv.dtype))
