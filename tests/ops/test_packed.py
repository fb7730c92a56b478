"""Packed weights: what quantizing costs, what a row gets in any company, and what they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from penstock.ops.experts import experts
from penstock.ops.packed import DENSE_FORMATS, pack, pack_stack, packed_bytes
from penstock.ops.packed_linear import packed_linear
from penstock.ops.route import route
from penstock.ops.weight_format import Format

from .rows import on_cpu

# relative norm of the error against float weights and activations, on normal weights: the promise of each format
WEIGHT_ERROR = {Format.INT8: 0.01, Format.INT4: 0.10}
OUTPUT_ERROR = {Format.INT8: 0.015, Format.INT4: 0.105}


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def error(found, expected):
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("dtype", DENSE_FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (64, 128), (65, 33), (200, 96)], ids=str)
def test_a_float_matrix_comes_back_as_it_was(dtype, shape):
    weight = normal(*shape, dtype=dtype)
    torch.testing.assert_close(pack(weight, DENSE_FORMATS[dtype]).dense(dtype), weight, atol=0, rtol=0)


@pytest.mark.parametrize("format", WEIGHT_ERROR)
def test_quantizing_stays_within_its_error(format):
    weight, x = normal(300, 1024), normal(9, 1024)
    packed = pack(weight, format)
    assert error(packed.dense(torch.float32), weight) < WEIGHT_ERROR[format]
    for run in packed_linear.implementations.values():
        assert error(run(x, packed), x @ weight.T) < OUTPUT_ERROR[format]


def test_the_sizes_are_those_of_the_formats():
    weight = normal(128, 1024)
    assert pack(weight, Format.INT8).nbytes == 128 * (1024 + 4)
    assert pack(weight, Format.INT4).nbytes == 128 * 1024 * 4.5 / 8


@pytest.mark.parametrize("format", [Format.FLOAT32, Format.INT8, Format.INT4])
@pytest.mark.parametrize("shape", [(1, 1), (64, 128), (130, 200)], ids=str)
def test_the_size_is_known_before_packing(format, shape):
    assert packed_bytes(format, shape) == pack(normal(*shape), format).nbytes


@pytest.mark.parametrize("format", [Format.FLOAT32, Format.INT8, Format.INT4])
@pytest.mark.parametrize("run", packed_linear.implementations.values(), ids=packed_linear.implementations.keys())
def test_zeros_and_a_row_of_zeros_give_zeros(run, format):
    assert run(torch.zeros(3, 64), pack(normal(70, 64), format)).count_nonzero() == 0
    assert run(normal(3, 64), pack(torch.zeros(70, 64), format)).count_nonzero() == 0


@pytest.mark.parametrize(
    ("format", "dtype"), [(f, d) for d in DENSE_FORMATS for f in (DENSE_FORMATS[d], *WEIGHT_ERROR)]
)
def test_a_token_gets_the_same_in_any_company(format, dtype):
    native = packed_linear.implementations["native"]
    weight, x = pack(normal(130, 256, dtype=dtype), format), normal(23, 256, dtype=dtype)
    together = native(x, weight)
    for rows in (slice(0, 1), slice(3, 8), slice(6, 23)):
        torch.testing.assert_close(native(x[rows], weight), together[rows], atol=0, rtol=0)


@pytest.mark.parametrize("format", [*DENSE_FORMATS.values(), *WEIGHT_ERROR])
def test_linear_and_embedding_take_a_packed_weight_where_a_matrix_stood(format):
    dtype = torch.bfloat16 if format is Format.BFLOAT16 else torch.float32
    weight = normal(130, 96, dtype=dtype)
    packed = pack(weight, format)
    ids = torch.tensor([[0, 129], [64, 5]])
    torch.testing.assert_close(F.embedding(ids, packed), packed.dense(dtype)[ids], atol=0, rtol=0)
    assert F.linear(normal(4, 96, dtype=dtype), packed).shape == (4, 130)
    assert (packed.shape, packed.dtype, packed.device.type) == ((130, 96), dtype, "cpu")


def test_nothing_else_takes_a_packed_weight():
    packed = pack(normal(64, 64), Format.INT8)
    with pytest.raises(TypeError, match="serves linear and embedding, not matmul"):
        torch.matmul(torch.zeros(1, 64), packed)
    with pytest.raises(ValueError, match=r"packed as bfloat16 cannot meet activations of torch.float32"):
        pack(normal(64, 64), Format.BFLOAT16)


@pytest.mark.parametrize("format", [Format.FLOAT32, *WEIGHT_ERROR])
def test_experts_may_be_packed(format):
    x, gate_up, down = normal(50, 64), normal(8, 192, 64) / 8, normal(8, 64, 96) / 8
    chosen = route(normal(50, 8), 3, True)
    expected = experts(x, gate_up, down, *chosen)
    most = 2.5 * OUTPUT_ERROR[format] if format in OUTPUT_ERROR else 1e-5  # of two products, one behind the other
    packed = pack_stack(gate_up, format), pack_stack(down, format)
    assert [stack.shape for stack in packed] == [gate_up.shape, down.shape]
    for run in on_cpu(experts).values():
        assert error(run(x, *packed, *chosen), expected) < most


def test_a_stack_gives_one_expert_at_a_time():
    with pytest.raises(TypeError, match="one expert at a time, not sum"):
        pack_stack(normal(2, 64, 64), Format.INT8).sum()


@pytest.mark.parametrize("format", [Format.FLOAT32, *WEIGHT_ERROR])
def test_the_size_of_a_stack_is_known_before_packing(format):
    assert packed_bytes(format, (3, 65, 100)) == pack_stack(normal(3, 65, 100), format).nbytes


def test_rows_of_another_width_are_refused():
    with pytest.raises((ValueError, RuntimeError)):
        F.linear(torch.zeros(1, 65), pack(normal(64, 64), Format.INT8))
