"""Weights whose implementation was chosen by measurement, for each number of rows (`dispatch.py`).

A `TunedWeight` stands wherever the matrix stood: `entry_linear`, `F.linear` and `F.embedding` take it, nothing else
does. So a model needs no second kind of layer, a call has no mode to be in, and two models of one process can be tuned
differently. All implementations give the same up to the rounding of their sums.

    CPU  1  rows      a product of matrix and vector for each row; or native: the C++ kernels, where they are loaded
         2  library   torch's linear
         3  flipped   torch's product with the weight on the left, which cuts its many rows instead of the few of x
    GPU  1  single    multiplied and added without tensor cores, the norm before it and the activation behind it inside
         2  flat      tensor cores, tiles over outputs and inputs only, the inputs split where outputs are few
         3  library   cuBLAS, with a norm and an activation of their own

Shape letters: T tokens, N outputs, K inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812, the name that everybody reads
from torch import Tensor

from penstock.ops.dispatch import Cuts
from penstock.ops.linear_weight import LinearWeight
from penstock.ops.packed import PackedWeight

CPU_NAMES = ("rows", "library", "flipped")
NATIVE_NAMES = ("native", "library", "flipped")
GPU_NAMES = ("single", "flat", "library")
MOST_SINGLE_ROWS = 4  # beyond, reading the weights again for each row never pays
MOST_FLAT_ROWS = 64  # on a GPU


class TunedWeight(LinearWeight):
    """[N, K] to whoever asks. dense: None if only the packed form is ever used; packed: None off the C++ kernels."""

    dense: Tensor | None
    packed: PackedWeight | None
    cuts: Cuts

    @staticmethod
    def __new__(cls, dense: Tensor | None, packed: PackedWeight | None, cuts: Cuts) -> TunedWeight:
        like = packed if dense is None else dense
        assert like is not None, "a tuned weight has at least one form"
        weight = torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=like.device)
        assert isinstance(weight, TunedWeight)
        weight.dense, weight.packed, weight.cuts = dense, packed, cuts
        return weight

    def __repr__(self) -> str:  # type: ignore[override]
        return f"TunedWeight({tuple(self.shape)}, {self.cuts})"

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes that lie in memory, of both forms."""
        return sum(form.nbytes for form in (self.dense, self.packed) if form is not None)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """On a CPU, and on a GPU the library's: kernels of our own begin at `entry_linear`."""
        rows = x.numel() // max(1, x.shape[-1])
        which = self.cuts.pick(rows)
        if which == 0 and self.packed is not None:
            return self.packed.linear(x, bias)
        assert self.dense is not None
        if x.device.type != "cpu" or which == 1 or x.dim() != 2 or not rows:
            return F.linear(x, self.dense, bias)
        return _by_rows(x, self.dense, bias) if which == 0 else _flipped(x, self.dense, bias)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the matrix: [*ids, K]."""
        form = self.packed if self.dense is None else self.dense
        assert form is not None
        return F.embedding(ids, form)


def names_on(device: torch.device, is_native: bool) -> tuple[str, str, str]:
    """What the three implementations are called there. is_native: weights are packed for the C++ kernels."""
    if device.type != "cpu":
        return GPU_NAMES
    return NATIVE_NAMES if is_native else CPU_NAMES


def tuned(weight_NK: Tensor, cuts: Cuts) -> Tensor:
    """The same weight, with its choice. Only the forms that the choice needs stay in memory.

    weight_NK: a plain matrix, or a `PackedWeight` of float32 or bfloat16 numbers, which come back as they were.
    """
    if not isinstance(weight_NK, PackedWeight):
        return TunedWeight(weight_NK, None, cuts)
    if cuts.second_from is None:
        return weight_NK
    return TunedWeight(weight_NK.dense(weight_NK.compute_dtype), None if cuts.second_from == 1 else weight_NK, cuts)


def few_rows_form(weight_NK: Tensor) -> tuple[Tensor, int | None]:
    """(the weight that serves few rows, from how many rows on it does not; None: it always does)."""
    if isinstance(weight_NK, TunedWeight) and weight_NK.packed is not None:
        return weight_NK.packed, weight_NK.cuts.second_from
    return weight_NK, None


def _by_rows(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    if len(x_TK) == 1:
        out_TN = torch.mv(weight_NK, x_TK[0]).unsqueeze(0)
    else:
        out_TN = torch.stack([torch.mv(weight_NK, x_K) for x_K in x_TK])
    return out_TN if bias_N is None else out_TN.add_(bias_N)


def _flipped(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    out_TN = torch.mm(weight_NK, x_TK.t()).t().contiguous()
    return out_TN if bias_N is None else out_TN.add_(bias_N)
