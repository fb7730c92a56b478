"""Blocks of a GGML type to float32, in numpy. Equal to `gguf.quants` of llama.cpp bit for bit: the tests compare.

Shape letters: N blocks. A block holds 32 or 256 weights, one float16 scale or two, and for the K types a scale (and a
minimum) for each group of 32 or 16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy
from numpy.typing import NDArray

Bytes = NDArray[numpy.uint8]
Floats = NDArray[numpy.float32]


def dequantize(type_name: str, blocks_NB: Bytes) -> Floats:
    """[N, bytes of a block] to [N, weights of a block]. The scales may be anything: inf and nan stay what they are."""
    with numpy.errstate(all="ignore"):
        return DEQUANTIZE[type_name](blocks_NB)


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of each block: [N, 1]."""
    return numpy.ascontiguousarray(blocks[:, at : at + 2]).view(numpy.float16).astype(numpy.float32)


def _nibbles(packed: Bytes, group: int) -> Bytes:
    """Of each `group` bytes first the low halves, then the high ones: [N, 2 * bytes]."""
    grouped = packed.reshape(len(packed), -1, 1, group)
    low_high = numpy.concatenate([grouped & 0x0F, grouped >> 4], axis=2)
    return low_high.reshape(len(packed), -1)


def _f32(blocks: Bytes) -> Floats:
    return numpy.ascontiguousarray(blocks).view(numpy.float32)


def _f16(blocks: Bytes) -> Floats:
    return numpy.ascontiguousarray(blocks).view(numpy.float16).astype(numpy.float32)


def _bf16(blocks: Bytes) -> Floats:
    wide = numpy.ascontiguousarray(blocks).view(numpy.uint16).astype(numpy.uint32) << 16
    return wide.view(numpy.float32)


def _q8_0(blocks: Bytes) -> Floats:
    return numpy.ascontiguousarray(blocks[:, 2:]).view(numpy.int8).astype(numpy.float32) * _half(blocks, 0)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:], 16).astype(numpy.float32) - 8)


def _q5_0(blocks: Bytes) -> Floats:
    fifth = numpy.unpackbits(blocks[:, 2:6], axis=1, bitorder="little")
    return _half(blocks, 0) * ((_nibbles(blocks[:, 6:], 16) | fifth << 4).astype(numpy.float32) - 16)


def _q4_k(blocks: Bytes) -> Floats:
    scale_N81, least_N81 = _k_scales(blocks)
    quants = _nibbles(blocks[:, 16:], 32).reshape(-1, 8, 32).astype(numpy.float32)
    return (scale_N81 * quants - least_N81).reshape(-1, 256)


def _q5_k(blocks: Bytes) -> Floats:
    scale_N81, least_N81 = _k_scales(blocks)
    fifth = blocks[:, 16:48].reshape(-1, 1, 32) >> numpy.arange(8, dtype=numpy.uint8).reshape(1, 8, 1) & 1
    quants = _nibbles(blocks[:, 48:], 32).reshape(-1, 8, 32) | fifth << 4
    return (scale_N81 * quants.astype(numpy.float32) - least_N81).reshape(-1, 256)


def _k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scale and minimum of each of the 8 groups, 6 bits each, packed into 12 bytes behind the two float16."""
    low, mid, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = numpy.concatenate([low & 0x3F, (high & 0x0F) | (low >> 2 & 0x30)], axis=1).astype(numpy.float32)
    leasts = numpy.concatenate([mid & 0x3F, (high >> 4) | (mid >> 2 & 0x30)], axis=1).astype(numpy.float32)
    return (_half(blocks, 0) * scales)[:, :, None], (_half(blocks, 2) * leasts)[:, :, None]


def _q6_k(blocks: Bytes) -> Floats:
    low = _nibbles(blocks[:, :128], 64).reshape(-1, 8, 32)
    shifts = numpy.array([0, 2, 4, 6], dtype=numpy.uint8).reshape(1, 1, 4, 1)
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3).reshape(-1, 8, 32)
    scales = numpy.ascontiguousarray(blocks[:, 192:208]).view(numpy.int8).astype(numpy.float32)
    quants = (low | high << 4).reshape(-1, 16, 16).astype(numpy.float32) - 32
    return ((_half(blocks, 208) * scales)[:, :, None] * quants).reshape(-1, 256)


DEQUANTIZE: Mapping[str, Callable[[Bytes], Floats]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q5_0": _q5_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
