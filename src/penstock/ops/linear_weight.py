"""What stands where a weight matrix stood: a tensor to `F.linear` and `F.embedding` and to nothing else.

So a decoder needs no second kind of layer for weights that are stored in other ways, and code that would misread their
bytes as numbers gets an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812, the name that everybody reads
from torch import Tensor


class LinearWeight(torch.Tensor):
    """[N, K] to whoever asks, of the dtype of its activations."""

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x @ self.T + bias."""
        raise NotImplementedError

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the matrix as it would have to be to give the same results: [*ids, K], in its dtype."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        served = _SERVED.get(func)
        if served is not None:
            return served(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "__get__":  # shape, dtype, device
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise TypeError(f"a packed weight serves linear and embedding, not {getattr(func, '__name__', func)}")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise TypeError(f"a packed weight has no numbers to give to {func}; see rows() and dense()")


class WeightStack(torch.Tensor):
    """[E, N, K] to whoever asks: the matrices of E experts, and nothing but to be indexed by one of them."""

    def matrix(self, expert: int) -> LinearWeight:
        """[N, K] of one expert."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__ and isinstance(args[1], int):
            return args[0].matrix(args[1])
        if getattr(func, "__name__", "") == "__get__":  # shape, dtype, device
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise TypeError(f"a packed stack serves one expert at a time, not {getattr(func, '__name__', func)}")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise TypeError(f"a packed stack has no numbers to give to {func}; see matrix()")


def _linear(input: Tensor, weight: LinearWeight, bias: Tensor | None = None) -> Tensor:
    return weight.linear(input, bias)


def _embedding(input: Tensor, weight: LinearWeight, **for_training: Any) -> Tensor:
    return weight.rows(input)


_SERVED: dict[Callable[..., Tensor], Callable[..., Tensor]] = {F.linear: _linear, F.embedding: _embedding}
