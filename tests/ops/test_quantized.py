"""Weights of few bits by rows: what rounding costs, that they are those of the CPU's kernels, and what they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from penstock.ops import quantized
from penstock.ops.experts import experts
from penstock.ops.fp8_product import fp8_product
from penstock.ops.fp8_rows import fp8_rows
from penstock.ops.lazy import has_triton
from penstock.ops.packed import pack
from penstock.ops.quantized import FORMATS, QuantizedWeight, quantize, quantized_bytes
from penstock.ops.quantized_linear import quantized_linear
from penstock.ops.rounding import FP8, fp8_of_rows
from penstock.ops.route import route
from penstock.ops.weight_format import Format

# relative norm of the error against float weights and activations, on normal weights: the promise of each format
WEIGHT_ERROR = {Format.FP8: 0.03, Format.INT8: 0.01, Format.INT4: 0.10}
OUTPUT_ERROR = {Format.FP8: 0.045, Format.INT8: 0.01, Format.INT4: 0.10}


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def error(found, expected):
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("format", FORMATS)
def test_quantizing_stays_within_its_error(format):
    weight, x = normal(300, 1024), normal(9, 1024)
    found = quantize(weight, format)
    assert error(found.dense(torch.float32), weight) < WEIGHT_ERROR[format]
    assert error(F.linear(x, found), x @ weight.T) < OUTPUT_ERROR[format]


@pytest.mark.parametrize("format", [Format.INT8, Format.INT4])
@pytest.mark.parametrize("shape", [(1, 1), (64, 128), (65, 33), (200, 96)], ids=str)
def test_the_numbers_are_those_of_the_panels_of_the_cpu(format, shape):
    weight = normal(*shape)
    packed = pack(weight, format).dense(torch.float32)
    torch.testing.assert_close(quantize(weight, format).dense(torch.float32), packed, atol=0, rtol=0)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (64, 128), (65, 100), (3, 65, 100)], ids=str)
def test_the_size_is_known_before_rounding(format, shape):
    assert quantized_bytes(format, shape) == quantize(normal(*shape), format).nbytes


@pytest.mark.parametrize("format", FORMATS)
def test_rounding_piece_by_piece_changes_nothing(format, monkeypatch):
    weight = normal(37, 64)
    whole = quantize(weight, format).dense(torch.float32)
    monkeypatch.setattr(quantized, "ELEMENTS_AT_ONCE", 5 * 64)
    torch.testing.assert_close(quantize(weight, format).dense(torch.float32), whole, atol=0, rtol=0)


@pytest.mark.parametrize("format", FORMATS)
def test_linear_and_embedding_take_a_quantized_weight_where_a_matrix_stood(format):
    found = quantize(normal(130, 96, dtype=torch.bfloat16), format)
    ids = torch.tensor([[0, 129], [64, 5]])
    torch.testing.assert_close(F.embedding(ids, found), found.dense(torch.bfloat16)[ids], atol=0, rtol=0)
    assert F.linear(normal(4, 96, dtype=torch.bfloat16), found, normal(130, dtype=torch.bfloat16)).shape == (4, 130)
    assert (found.shape, found.dtype, found.device.type) == ((130, 96), torch.bfloat16, "cpu")
    with pytest.raises(TypeError, match="serves linear and embedding, not matmul"):
        torch.matmul(torch.zeros(1, 130), found)


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_and_a_row_of_zeros_give_zeros(format):
    assert F.linear(torch.zeros(3, 64), quantize(normal(70, 64), format)).count_nonzero() == 0
    assert F.linear(normal(3, 64), quantize(torch.zeros(70, 64), format)).count_nonzero() == 0


@pytest.mark.parametrize("format", FORMATS)
def test_rounding_a_rounded_weight_again_changes_nothing(format):
    once = quantize(normal(64, 96), format).dense(torch.float32)
    torch.testing.assert_close(quantize(once, format).dense(torch.float32), once, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("format", FORMATS)
def test_experts_may_be_quantized(format):
    x, gate_up, down = normal(50, 64), normal(8, 192, 64) / 8, normal(8, 64, 96) / 8
    chosen = route(normal(50, 8), 3, True)
    rounded = quantize(gate_up, format), quantize(down, format)
    assert [stack.shape for stack in rounded] == [gate_up.shape, down.shape]
    torch.testing.assert_close(rounded[0][3].dense(torch.float32), quantize(gate_up[3], format).dense(torch.float32))
    expected = experts(x, gate_up, down, *chosen)
    assert error(experts(x, *rounded, *chosen), expected) < 2.5 * OUTPUT_ERROR[format]  # two products in a row
    with pytest.raises(TypeError, match="one expert at a time, not sum"):
        rounded[0].sum()


def test_a_token_is_rounded_alike_in_any_company():
    x = normal(9, 64)
    together, scales, _ = fp8_rows(x)
    for row in range(9):
        alone, scale, _ = fp8_rows(x[row : row + 1])
        assert (alone.float() == together[row].float()).all()
        assert scale == scales[row]


@pytest.mark.parametrize("shape", [(17, 64, 32), (70, 128, 96)], ids=str)
def test_the_product_of_the_library_is_that_of_the_reference(shape):
    tokens, inputs, outputs = shape
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, weight = normal(tokens, inputs).to(device), quantize(normal(outputs, inputs).to(device), Format.FP8)
    assert isinstance(weight, QuantizedWeight)
    found = fp8_product(*fp8_of_rows(x), weight.numbers, weight.scales)
    expected = quantized_linear.implementations["reference"](x, weight)[0]
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.01)


def test_a_format_that_is_no_rounding_is_refused():
    with pytest.raises(ValueError, match="bfloat16 is not rounded to: fp8, int8, int4 are"):
        quantize(normal(4, 4), Format.BFLOAT16)


@pytest.mark.skipif(not has_triton(), reason="needs Triton, which there is for Linux only")
def test_a_kernel_rounds_every_number_as_torch_does():
    from penstock.ops.fp8_rows.triton import fp8_rows as in_triton

    halfs = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    halfs = halfs[halfs.isfinite() & (halfs.abs() <= 448)]
    most = torch.tensor([448.0])  # so that nothing is scaled
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = torch.stack([torch.cat((part, most)) for part in halfs[: len(halfs) // 16 * 16].view(16, -1)]).to(device)
    found, scales, _ = in_triton(rows)
    assert (scales == 1).all()
    assert (found.float() == rows.to(FP8).float()).all()
