"""Shape letters: T tokens, F inner width."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812, the name that everybody reads
from torch import Tensor


def gated_gelu(gate_up: Tensor) -> Tensor:
    """gelu(gate) * up of a gated MLP whose two projections were one matrix.

    Args:
        gate_up: [..., 2F], the gate in the first half.
    Returns: [..., F], in the dtype of the input, as is the arithmetic; gelu in its tanh form.
    Source: GeGLU (arXiv 2002.05202).
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up
