"""How the C++ kernels come into being, and what happens where they cannot."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from penstock.ops import native
from penstock.ops.rms_norm import rms_norm


@pytest.fixture
def fresh(monkeypatch):
    """As in a process that has prepared nothing."""
    monkeypatch.setattr(native, "_state", native.State(None, "not prepared"))


def test_without_a_compiler_torch_computes_and_the_reason_is_told(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "cpu_flags", lambda: frozenset(native.NEEDED))
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    assert native.prepare(tmp_path).core is None
    assert "no C++ compiler" in native.state().reason
    assert rms_norm.on(torch.device("cpu")) == "reference"


def test_without_the_instructions_torch_computes_and_the_reason_is_told(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "cpu_flags", lambda: frozenset({"avx2"}))
    assert native.prepare(tmp_path).core is None
    assert "avx512_bf16" in native.state().reason


def test_a_compiler_that_fails_is_no_reason_to_fail(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "cpu_flags", lambda: frozenset(native.NEEDED))
    monkeypatch.setattr(native.shutil, "which", lambda name: "/bin/false")
    assert native.prepare(tmp_path).core is None
    assert "/bin/false says nothing" in native.state().reason
    assert not list(tmp_path.iterdir())


def test_the_library_is_named_by_source_compiler_and_cpu():
    names = {native._key("g++", frozenset()), native._key("c++", frozenset()), native._key("g++", frozenset({"avx2"}))}
    assert len(names) == 3


def test_importing_compiles_and_loads_nothing():
    code = "import penstock.models.decoder\nfrom penstock.ops import native\nprint(native.state().reason)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "not prepared"
