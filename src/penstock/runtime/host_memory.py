"""Memory of the host: handed out by the system when it is first written, or pinned so that a device can reach it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penstock.core.errors import ConfigError

PAGE_BYTES = 4096  # more than a cache line; what is pinned must begin where a page does


class HostArena:
    """One stretch of zeros for many tensors.

    For an accelerator it is pinned as a whole: torch's own pinned memory is rounded up to a power of two, which would
    be up to twice of what was planned. Raises ConfigError if the system refuses to pin so much.
    """

    def __init__(self, n_bytes: int, device: torch.device) -> None:
        raw = np.zeros(n_bytes + PAGE_BYTES, np.uint8)
        skip_bytes = -raw.ctypes.data % PAGE_BYTES
        self._bytes: Tensor | None = torch.from_numpy(raw[skip_bytes : skip_bytes + n_bytes])
        self._used_bytes = 0
        self._is_pinned = False
        if device.type == "cuda" and n_bytes:
            failed = _cuda().cudaHostRegister(self._bytes.data_ptr(), n_bytes, 0)
            if int(failed):
                raise ConfigError(
                    f"{n_bytes} bytes of host memory cannot be pinned (CUDA error {int(failed)}); ask for a smaller "
                    "--host-kv-memory, or raise the limit on locked memory (ulimit -l)"
                )
            self._is_pinned = True

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The next part of the arena."""
        assert self._bytes is not None, "the arena was given back"
        start = self._used_bytes
        self._used_bytes += math.prod(shape) * dtype.itemsize
        assert self._used_bytes <= len(self._bytes), "more is taken from the arena than it was made for"
        return self._bytes[start : self._used_bytes].view(dtype).view(shape)

    def close(self) -> None:
        """Give it back; no copy may be under way."""
        if self._is_pinned and self._bytes is not None:
            _cuda().cudaHostUnregister(self._bytes.data_ptr())
        self._bytes = None


def _cuda() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
