"""The GPU's kernels in Triton's interpreter: a few cases of each, for it is slow. On a GPU the sweep runs them all."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from penstock.ops.check import all_ops, cases_of, compare
from penstock.ops.lazy import has_triton

EVERY = {  # one case in so many; bfloat16 is for the GPU, the interpreter does not multiply it
    "clamped_swiglu": 1,
    "entry_linear": 4,
    "experts": 9,
    "fp8_rows": 2,
    "gated_gelu": 1,
    "gated_silu": 1,
    "paged_attention": 17,
    "quantized_linear": 4,
    "rms_norm": 3,
    "rope_and_store": 4,
    "route": 2,
    "sample": 9,
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


def test_nothing_imports_triton_where_there_is_no_gpu():
    code = (
        "import sys, penstock.runtime.executor, penstock.models.decoder;"
        "print([name for name in sys.modules if name == 'triton' or name.startswith('penstock') and 'triton' in name])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
