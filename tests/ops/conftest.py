from __future__ import annotations

import pytest
import torch

from penstock.ops import native


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small tensors on a shared machine: threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _native_kernels():
    """Where there is no compiler, the rows "native" test what stands in for them."""
    native.prepare()
