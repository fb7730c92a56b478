"""How the numbers of a weight matrix are stored."""

from __future__ import annotations

import enum


class Format(enum.Enum):
    """How the numbers of a weight are stored. `code` is that of `cpp/linear.h`, which does not know FP8 (e4m3)."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    INT4 = "int4"
    FP8 = "fp8"

    @property
    def code(self) -> int:
        return tuple(Format).index(self)

    @property
    def activation_group(self) -> int | None:
        """Inputs whose activations share a scale; None: activations stay as they are."""
        return {Format.INT8: 128, Format.INT4: 32}.get(self)

    @property
    def together(self) -> int:
        """Inputs are filled up to a multiple of this."""
        return {Format.FLOAT32: 1, Format.BFLOAT16: 2, Format.INT8: 128, Format.INT4: 32, Format.FP8: 1}[self]

    @property
    def bits(self) -> int:
        """Of a number, its scale apart."""
        return {Format.FLOAT32: 32, Format.BFLOAT16: 16, Format.INT8: 8, Format.INT4: 4, Format.FP8: 8}[self]

    def row_bytes(self, inputs: int) -> int:
        """Of a row of a matrix with its scales, where rows lie one behind the other."""
        if self is Format.INT4:
            return -(-inputs // 32) * (16 + 2)
        return inputs * self.bits // 8 + (4 if self in (Format.INT8, Format.FP8) else 0)
