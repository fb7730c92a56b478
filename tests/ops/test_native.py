"""How the C++ kernels come into being, and what happens where they cannot."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from penstock.ops import native
from penstock.ops.check import check_kernel
from penstock.ops.packed import pack
from penstock.ops.packed_linear import packed_linear
from penstock.ops.rms_norm import rms_norm
from penstock.ops.weight_format import Format


@pytest.fixture
def fresh(monkeypatch):
    """As in a process that has prepared nothing."""
    monkeypatch.setattr(native, "_state", native.State(None, "not prepared"))


def test_without_a_compiler_torch_computes_and_the_reason_is_told(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "cpu_flags", lambda: frozenset(native.AVX512.needed))
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    assert native.prepare(tmp_path).core is None
    assert "no C++ compiler" in native.state().reason
    assert rms_norm.on(torch.device("cpu")) == "reference"


def test_without_the_instructions_torch_computes_and_the_reason_is_told(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "cpu_flags", lambda: frozenset({"sse2"}))
    assert native.prepare(tmp_path).core is None
    assert "avx2, fma, f16c" in native.state().reason


@pytest.mark.skipif(not native.cpu_flags().issuperset(native.AVX2.needed), reason="this CPU has no AVX2")
def test_a_cpu_with_avx2_alone_gets_the_linear_layer(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "cpu_flags", lambda: frozenset(native.AVX2.needed))
    state = native.prepare(tmp_path)
    if state.core is None:
        pytest.skip(state.reason)
    assert state.core.kind is native.AVX2
    cpu = torch.device("cpu")
    assert (packed_linear.on(cpu), rms_norm.on(cpu)) == ("native", "reference")
    check_kernel("packed_linear", packed_linear.implementations["native"])
    weight, x = torch.randn(130, 256), torch.randn(23, 256)
    for format in (Format.FLOAT32, Format.INT8, Format.INT4):
        packed = pack(weight, format)
        torch.testing.assert_close(packed_linear(x[3:8], packed), packed_linear(x, packed)[3:8], atol=0, rtol=0)


def test_a_compiler_that_fails_is_no_reason_to_fail(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "cpu_flags", lambda: frozenset(native.AVX512.needed))
    monkeypatch.setattr(native.shutil, "which", lambda name: "/bin/false")
    assert native.prepare(tmp_path).core is None
    assert "/bin/false says nothing" in native.state().reason
    assert not list(tmp_path.iterdir())


def test_the_library_is_named_by_source_compiler_and_cpu():
    asked = [("g++", frozenset()), ("c++", frozenset()), ("g++", frozenset({"avx2"}))]
    assert len({native._key(kind, *one) for one in asked for kind in native.KINDS}) == 6


def test_importing_compiles_and_loads_nothing():
    code = "import penstock.models.decoder\nfrom penstock.ops import native\nprint(native.state().reason)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "not prepared"
