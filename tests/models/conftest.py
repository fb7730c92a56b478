from __future__ import annotations

import pytest
import torch

from tests.models.checkpoints import make_model, save


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small tensors on a shared machine: threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """name -> (the model of transformers, the folder it was saved in); each is made once."""
    made = {}

    def make(name):
        if name not in made:
            model = make_model(name)
            made[name] = model, save(model, tmp_path_factory.mktemp(name))
        return made[name]

    return make
