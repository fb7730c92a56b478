"""How small arrays travel between host and device without making either wait.

On a CPU a "send" shares the array's memory. On an accelerator it goes through pinned memory and is ordered by the
current stream; the caching host allocator keeps a pinned buffer alive until the copies that use it are done.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.int64]


def send(array_host: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """The array as a tensor on `device`; on a CPU it shares the array's memory."""
    tensor = torch.from_numpy(array_host)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def send_all(arrays_host: Sequence[Ints], device: torch.device) -> tuple[Tensor, ...]:
    """Several int64 arrays with one copy."""
    packed = send(np.concatenate(arrays_host), device)
    return torch.split(packed, [len(array) for array in arrays_host])


def fetch(tensor: Tensor) -> Tensor:
    """A host copy that is complete once the device has done the work queued so far; on a CPU at once."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


class Mirror:
    """An array that the host writes and the device reads: one memory on a CPU, else each write is sent."""

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic], device: torch.device) -> None:
        self.host = np.zeros(shape, dtype)
        self._device = device
        shared = torch.from_numpy(self.host)
        self.dev = shared if device.type == "cpu" else shared.to(device)

    def write(self, flat: Ints, values: npt.NDArray[np.generic]) -> None:
        """Elements `flat` (of the flattened array) become `values`; of an element named twice the last value stays."""
        flat_host = self.host.reshape(-1)
        flat_host[flat] = values
        if self._device.type != "cpu":  # read back from the host, so that an element named twice is sent the same twice
            self.dev.view(-1).index_copy_(0, send(flat, self._device), send(flat_host[flat], self._device))
