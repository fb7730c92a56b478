"""Sampling on a GPU: few rows have the ends of top-k and top-p found by many programs each (`narrow_kernels.py`), many
rows by one each (`triton.py`). The tokens are the same.

Shape letters: N rows, V vocabulary, B pieces of it, W thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from penstock.ops.sample.narrow_kernels import DIGIT_BITS, PASSES, last_ids, measure, narrow
from penstock.ops.sample.triton import halve, sample_with

MOST_ROWS = 128  # beyond, a program per row fills the GPU: on an H200 1.4 to 2.5 ms at 64 rows, 5.4 to 4.3 at 256


def sample(
    logits_NV: Tensor,
    temperature_N: Tensor,
    top_k_N: Tensor | None,
    top_p_N: Tensor | None,
    min_p_N: Tensor | None,
    seed_N: Tensor,
    index_N: Tensor,
) -> Tensor:
    """See `reference.sample`."""
    find = find_edges if len(logits_NV) <= MOST_ROWS else halve
    return sample_with(find, logits_NV, temperature_N, top_k_N, top_p_N, min_p_N, seed_N, index_N)


def find_edges(
    logits_NV: Tensor,
    top_NB: Tensor,
    temperature_N: Tensor,
    top_k_N: Tensor | None,
    top_p_N: Tensor | None,
    sizes: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """(key, id) of the last token that stays, int32 [N] each. Eight passes for each filter, and one to measure."""
    search = _Search(logits_NV, top_NB, temperature_N, top_k_N, top_p_N, sizes)
    return search.run()


class _Search:
    def __init__(
        self,
        logits_NV: Tensor,
        top_NB: Tensor,
        temperature_N: Tensor,
        top_k_N: Tensor | None,
        top_p_N: Tensor | None,
        sizes: Mapping[str, Any],
    ) -> None:
        self._inputs = (logits_NV, top_NB, temperature_N, top_k_N, top_p_N)
        self._top_k_N, self._top_p_N = top_k_N, top_p_N
        self._sizes = sizes
        self._n_rows, self._n_pieces = top_NB.shape
        self._vocab_size, self._device = logits_NV.shape[1], logits_NV.device
        shape = self._n_rows, self._n_pieces
        self._parts = [self._ints(*shape, 1 << DIGIT_BITS, dtype=torch.int64) for _ in range(2)]
        self._prefixes = self._ints(PASSES, self._n_rows, dtype=torch.int64)

    def run(self) -> tuple[Tensor, Tensor]:
        of_k = self._measured(None)
        found = of_k if self._top_p_N is None else self._measured(of_k)
        edge_id_N = self._ints(self._n_rows)
        last_ids[(self._n_rows,)](
            *self._inputs, *of_k[:3], *found, edge_id_N, self._vocab_size, self._n_pieces, **self._sizes, num_warps=8
        )
        return found[0], edge_id_N

    def _measured(self, of_k: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        """(edge_N, counts_NB, masses_NB, ties_NB), of top-k, or of top-p if those of top-k are given."""
        is_mass = of_k is not None
        grid = self._n_rows, self._n_pieces
        edge_N, counts_NB, ties_NB = self._ints(self._n_rows), self._ints(*grid), self._ints(*grid)
        masses_NB = self._ints(*grid, dtype=torch.int64)
        before = (edge_N, counts_NB, masses_NB) if of_k is None else of_k[:3]
        has_passes = is_mass or self._top_k_N is not None
        for n_passes in range(PASSES if has_passes else 0):
            parts_in, parts_out = self._parts[n_passes % 2], self._parts[1 - n_passes % 2]
            narrow[grid](
                *self._inputs, *before, self._prefixes, parts_in, parts_out, self._vocab_size, self._n_rows,
                self._n_pieces, n_passes, is_mass=is_mass, **self._sizes, num_warps=8,
            )  # fmt: skip
        measure[grid](
            *self._inputs, *before, self._prefixes, self._parts[PASSES % 2], edge_N, counts_NB, masses_NB, ties_NB,
            self._vocab_size, self._n_rows, self._n_pieces, PASSES, is_mass=is_mass, **self._sizes, num_warps=8,
        )  # fmt: skip
        return edge_N, counts_NB, masses_NB, ties_NB

    def _ints(self, *size: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(size, dtype=dtype, device=self._device)
