"""How a product with few rows is cut into programs, and what a cut reads: arithmetic alone, no torch.

The weights [N, K] are what is read; x [M, K] is small. A program takes `block_outputs` of N and one of `parts` of K.
Wide tiles read x less often, narrow ones make more programs; the chip wants a program for each of its processors.

Source: the flat GEMM of FlashDecoding++ (arXiv 2311.01282, section 4): small N is bound by parallelism, so tiles are
narrow or K is split; large N is bound by memory, so tiles are wide and loads run ahead.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_OUTPUTS = (128, 64, 32, 16)
BLOCK_INPUTS = 128
MOST_PARTS = 8
LEAST_ROWS = 8  # the smallest side of a tensor core's product; rows are filled up to it, not to 64


@dataclass(frozen=True, slots=True)
class Tiling:
    """block_rows: M, filled up. parts: of K, each a multiple of BLOCK_INPUTS but the last."""

    block_rows: int
    block_outputs: int
    parts: int

    def programs(self, outputs: int) -> int:
        return -(-outputs // self.block_outputs) * self.parts


def tiling_of(rows: int, outputs: int, inputs: int, processors: int) -> Tiling:
    """The widest tiles that give every processor a program; narrow ones over parts of K where even those are few."""
    block_rows = max(LEAST_ROWS, 1 << (rows - 1).bit_length())
    for block_outputs in BLOCK_OUTPUTS:
        if outputs >= block_outputs * processors:
            return Tiling(block_rows, block_outputs, 1)
    narrow = BLOCK_OUTPUTS[-1]
    parts = 1
    while parts < MOST_PARTS and parts * 2 * BLOCK_INPUTS <= inputs and -(-outputs // narrow) * parts < processors:
        parts *= 2
    return Tiling(block_rows, narrow, parts)


def read_elements(rows: int, outputs: int, inputs: int, block_outputs: int) -> int:
    """Numbers that move: the weights once, x once for each tile of outputs, the result once."""
    return outputs * inputs + rows * inputs * -(-outputs // block_outputs) + rows * outputs


def intensity(rows: int, outputs: int, inputs: int, block_outputs: int) -> float:
    """Operations for each number that moves; grows with `block_outputs`, while the programs become fewer."""
    return 2 * rows * outputs * inputs / read_elements(rows, outputs, inputs, block_outputs)
