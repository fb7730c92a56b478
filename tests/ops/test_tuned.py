"""Weights with a choice: every implementation gives the product, and the choice is the one that runs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from penstock.ops.activation import Activation
from penstock.ops.check import Case, compare
from penstock.ops.dispatch import ALWAYS, Cuts
from penstock.ops.entry_linear import cpu, tiling
from penstock.ops.entry_linear import entry_linear as op
from penstock.ops.lazy import has_triton
from penstock.ops.packed import DENSE_FORMATS, PackedWeight, pack
from penstock.ops.tuned import TunedWeight, few_rows_form, names_on, tuned

needs_triton = pytest.mark.skipif(not has_triton(), reason="needs Triton, which there is for Linux only")
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("cuts", [*ALWAYS, Cuts(2, None), Cuts(2, 5), Cuts(5, 5)], ids=str)
def test_every_choice_gives_the_product(cuts, is_packed, dtype):
    weight, bias = normal(70, 33, dtype=dtype) * 33**-0.5, normal(70, dtype=dtype)
    chosen = tuned(pack(weight, DENSE_FORMATS[dtype]) if is_packed else weight, cuts)
    for rows in (0, 1, 2, 4, 5, 40):
        x = normal(rows, 33, dtype=dtype)
        atol = 1e-5 if dtype is torch.float32 else 2e-2
        torch.testing.assert_close(F.linear(x, chosen), F.linear(x, weight), atol=atol, rtol=atol)
        found = F.linear(x, chosen, bias)
        torch.testing.assert_close(found, F.linear(x, weight, bias), atol=2 * atol, rtol=2 * atol)
        assert found.is_contiguous()


def test_the_choice_is_what_runs(monkeypatch):
    ran = []
    weight = tuned(normal(8, 4), Cuts(2, 5))
    for name, function in (("rows", torch.mv), ("flipped", torch.mm)):
        monkeypatch.setattr(torch, function.__name__, lambda *a, n=name, f=function: ran.append(n) or f(*a))
    for rows in (1, 2, 4, 5, 9):
        F.linear(normal(rows, 4), weight)
        ran.append(rows)
    assert ran == ["rows", 1, 2, 4, "flipped", 5, "flipped", 9]


def test_an_embedding_is_read_in_either_form():
    weight, ids = normal(70, 33), torch.tensor([[3, 69], [0, 3]])
    for form in (tuned(weight, Cuts(2, 5)), tuned(pack(weight, DENSE_FORMATS[torch.float32]), Cuts(2, 5))):
        torch.testing.assert_close(F.embedding(ids, form), F.embedding(ids, weight), atol=0, rtol=0)


def test_only_the_forms_that_are_used_stay():
    packed = pack(normal(64, 64), DENSE_FORMATS[torch.float32])
    assert tuned(packed, Cuts(None, None)) is packed
    both, plain = tuned(packed, Cuts(4, None)), tuned(packed, Cuts(1, 9))
    assert both.nbytes == 2 * packed.nbytes
    assert plain.packed is None
    assert plain.nbytes == packed.nbytes
    assert few_rows_form(both) == (packed, 4)
    assert few_rows_form(plain) == (plain, None)
    assert isinstance(few_rows_form(packed)[0], PackedWeight)


def test_a_tuned_weight_has_no_numbers_for_anybody_else():
    weight = tuned(normal(8, 4), Cuts(2, 5))
    assert (weight.shape, weight.dtype, weight.device.type) == ((8, 4), torch.float32, "cpu")
    with pytest.raises(TypeError, match="serves linear and embedding"):
        weight.sum()


def test_names_say_what_the_machine_has():
    assert names_on(torch.device("cpu"), is_native=False)[0] == "rows"
    assert names_on(torch.device("cpu"), is_native=True)[0] == "native"
    assert names_on(torch.device("cuda"), is_native=False)[2] == "library"


# --- the GPU's implementations, in the interpreter ---
@needs_triton
@interpreted
@pytest.mark.parametrize("cuts", ALWAYS, ids=["single", "flat", "library"])
@pytest.mark.parametrize("activation", [None, Activation.SILU, Activation.CLAMPED_SWIGLU])
@pytest.mark.parametrize("rows", [1, 3, 4, 8, 9, 17])
def test_each_implementation_of_the_gpu_answers_as_the_reference(rows, activation, cuts):
    implementation = op.implementations["cuda"]
    x, residual = normal(rows, 200)[:, :160], normal(rows, 160)
    weight, bias, norm = normal(66, 160) * 160**-0.5, normal(66), normal(160)

    def forced(x, weight, *others):
        return implementation(x, TunedWeight(weight, None, cuts), *others)

    compare("entry_linear", forced, Case("plain", (x, weight, None, None, None, 0.0, False, activation), 2e-5))
    args = (x, weight, bias, residual, norm, 1e-6, False, activation)
    compare("entry_linear", forced, Case("normed", args, 2e-5))


@needs_triton
@interpreted
@pytest.mark.parametrize("gate", [-1, 0, 2])
@pytest.mark.parametrize("parts", [1, 2, 8])
@pytest.mark.parametrize("rows", [1, 8, 13])
def test_parts_of_the_inputs_add_up(rows, parts, gate):
    from penstock.ops.entry_linear.split import split_linear
    from penstock.ops.gated_kernel import KINDS

    x, weight, bias = normal(rows, 300), normal(70, 300) * 300**-0.5, normal(70)
    activation = {kind: found for found, kind in KINDS.items()}.get(gate)
    out = torch.empty(rows, 70 if gate < 0 else 35)
    split_linear(x, weight, bias, gate, out, tiling.Tiling(8 if rows <= 8 else 16, 32, parts))
    expected, _ = cpu.entry_linear(x, weight, bias, activation=activation)
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=2e-5)


# --- how it is cut ---
@pytest.mark.parametrize("outputs", [16, 1000, 4096, 12288, 100_000])
@pytest.mark.parametrize("inputs", [64, 1024, 14336])
@pytest.mark.parametrize("processors", [1, 108, 132])
def test_every_processor_gets_a_program_where_the_weights_allow_it(outputs, inputs, processors):
    found = tiling.tiling_of(3, outputs, inputs, processors)
    assert found.block_rows == 8
    most = -(-outputs // 16) * min(tiling.MOST_PARTS, max(1, inputs // tiling.BLOCK_INPUTS))
    assert found.programs(outputs) >= min(processors, most) / 2
    wider = tiling.Tiling(8, 2 * found.block_outputs, found.parts)
    is_widest = found.block_outputs == tiling.BLOCK_OUTPUTS[0]
    assert is_widest or wider.programs(outputs) <= max(processors, wider.programs(16))


@pytest.mark.parametrize(("rows", "outputs", "inputs", "block"), [(1, 64, 32, 16), (8, 100, 48, 32), (5, 7, 3, 16)])
def test_the_formulas_count_what_a_walk_over_the_tiles_counts(rows, outputs, inputs, block):
    read = operations = 0
    for first in range(0, outputs, block):
        width = min(block, outputs - first)
        read += rows * inputs + width * inputs + rows * width
        operations += 2 * rows * width * inputs
    assert tiling.read_elements(rows, outputs, inputs, block) == read
    assert tiling.intensity(rows, outputs, inputs, block) == operations / read


def test_wider_tiles_do_more_with_what_they_read_and_make_fewer_programs():
    blocks = sorted(tiling.BLOCK_OUTPUTS)
    found = [tiling.intensity(8, 4096, 4096, block) for block in blocks]
    assert found == sorted(found)
    programs = [tiling.Tiling(8, block, 1).programs(4096) for block in blocks]
    assert programs == sorted(programs, reverse=True)
