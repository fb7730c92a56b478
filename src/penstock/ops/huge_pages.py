"""Memory of the CPU in pages of 2 MiB where the system gives them, zeroed, taken from it when first written.

A step reads all weights once: in pages of 4 KiB it waits for address translation more than for data. One Zen 4 core
under KVM, one token through bfloat16, int8, int4 layers: 17, 20 and 19 GB/s in small pages, 32, 28 and 37 in large.
"""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

PAGE_BYTES = 2**21
ARENA_BYTES = 2**26
ALIGNMENT_BYTES = 64  # of a vector, and of a cache line


def zeros_on_huge_pages(n_bytes: int) -> Tensor:
    """uint8 [n_bytes]. Nothing is resident before it is written. Given back with the last tensor that views it."""
    if n_bytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    pages = mmap.mmap(-1, n_bytes + PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # systems without them: pages are then as everywhere
        pages.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(pages, dtype=torch.uint8)
    skip_bytes = -whole.data_ptr() % PAGE_BYTES
    return whole[skip_bytes : skip_bytes + n_bytes]


class Arena:
    """Cuts tensors from large pieces, so that small matrices share huge pages. What it cut keeps a piece alive."""

    def __init__(self) -> None:
        self._left = torch.empty(0, dtype=torch.uint8)

    def place(self, tensor: Tensor) -> Tensor:
        """A copy, in this memory."""
        n_bytes = -(-tensor.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        if n_bytes > len(self._left):
            self._left = zeros_on_huge_pages(max(n_bytes, ARENA_BYTES))
        taken, self._left = self._left[: tensor.nbytes], self._left[n_bytes:]
        return taken.view(tensor.dtype).view(tensor.shape).copy_(tensor)
