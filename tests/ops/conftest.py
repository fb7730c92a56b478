from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small tensors on a shared machine: threads only wait for each other."""
    torch.set_num_threads(1)
