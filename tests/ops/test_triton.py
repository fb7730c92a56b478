"""The GPU's kernels in Triton's interpreter: a few cases of each, for it is slow. On a GPU the sweep runs them all."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from penstock.ops.check import all_ops, cases_of, compare, random_normal
from penstock.ops.lazy import has_triton
from penstock.ops.shared_attention.cases import SHAPES, shared_batch
from penstock.ops.shared_attention.packing import Capacity, PlacedRun

EVERY = {  # one case in so many; bfloat16 is for the GPU, the interpreter does not multiply it
    "advance_rows": 1,
    "clamped_swiglu": 1,
    "draw_parameters": 1,
    "entry_linear": 4,
    "experts": 9,
    "fp8_rows": 2,
    "gated_gelu": 1,
    "gated_silu": 1,
    "paged_attention": 17,
    "place_segments": 1,
    "quantized_linear": 4,
    "rms_norm": 3,
    "rope_and_store": 4,
    "rope_angles": 1,
    "route": 2,
    "sample": 9,
    "shared_attention": 5,
    "unified_attention": 5,
}


def test_every_kernel_in_triton_is_looked_at():
    assert EVERY.keys() == {name for name, op in all_ops().items() if "cuda" in op.implementations}


@pytest.mark.skipif(not has_triton(), reason="needs Triton, which there is for Linux only")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the sweep runs all cases on the GPU")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy says what a GPU does not: exp overflows, log of 0
@pytest.mark.parametrize("name", EVERY)
def test_a_kernel_answers_as_its_reference(name):
    cases = [case for case in cases_of(name, "cpu") if "bfloat16" not in case.name]
    for case in cases[:: EVERY[name]]:
        compare(name, all_ops()[name].implementations["cuda"], case)


@pytest.mark.skipif(not has_triton(), reason="needs Triton, which there is for Linux only")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("shape", ["one run", "nested", "many members"])
def test_runs_in_a_buffer_with_room_for_any_are_served_alike(shape):
    """As a captured step has them: what is in the buffers now is not known to the host."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(2)
    batch, n_blocks = shared_batch(*SHAPES[shape], 16, generator, device)
    n_tokens, found = len(batch.kv_lens), batch.shared
    placed = []
    for run in found.runs_host:
        placed.append(
            PlacedRun(run.table_start, run.keys, tuple(found.members_M[run.first : run.stop].tolist()), run.level)
        )
    capacity = Capacity.for_any(n_tokens, 4)
    packed = torch.from_numpy(capacity.pack(placed)).to(device)
    roomy = replace(batch, shared=capacity.unpack(packed, found.tables, 10_000, ()))
    q = random_normal(generator, n_tokens, 8, 32, dtype=torch.float16, device=device)
    kv = random_normal(generator, 2, n_blocks, 16, 2, 32, dtype=torch.float16, device=device)
    op = all_ops()["shared_attention"].implementations
    torch.testing.assert_close(op["cuda"](q, kv, roomy, 0.3), op["reference"](q, kv, batch, 0.3), atol=3e-3, rtol=3e-3)


@pytest.mark.skipif(not has_triton(), reason="needs Triton, which there is for Linux only")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the sweep runs all cases on the GPU")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["9x65 step 0.5, all filters", "9x65 step 0.5, top-k", "9x65 step 0.5, top-p"])
def test_many_programs_per_row_find_the_same_edges(name, monkeypatch):
    monkeypatch.setattr("penstock.ops.sample.triton.PIECE", 32)  # so that ties lie in several pieces
    (case,) = (case for case in cases_of("sample", "cpu") if case.name == name)
    compare("sample", all_ops()["sample"].implementations["cuda"], case)


def test_nothing_imports_triton_where_there_is_no_gpu():
    code = (
        "import sys, penstock.runtime.executor, penstock.models.decoder;"
        "print([name for name in sys.modules if name == 'triton' or name.startswith('penstock') and 'triton' in name])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
