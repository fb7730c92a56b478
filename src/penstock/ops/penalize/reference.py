"""Shape letters: N rows, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

IN_PROMPT = 1  # a tally: one if the token is in the prompt, plus two for every time that it was put out
PUT_OUT = 2


def penalize(
    logits_NV: Tensor, tally_NV: Tensor, repetition_N: Tensor, frequency_N: Tensor, presence_N: Tensor
) -> Tensor:
    """Penalties for tokens that occurred, in the order of vLLM:

    1. repetition, for tokens of the prompt or the outputs: a positive logit is divided by it, another multiplied.
    2. frequency, for outputs: subtracted as often as the token was put out.
    3. presence, for outputs: subtracted once.

    Args:
        logits_NV: float32. tally_NV: integers, IN_PROMPT and PUT_OUT added up.
        repetition_N, frequency_N, presence_N: float32; 1, 0 and 0 change nothing.
    Returns: float32 [N, V].
    Source: repetition from CTRL (arXiv 1909.05858); the others from the OpenAI API.
    """
    counts_NV = tally_NV // PUT_OUT
    repetition_N1 = repetition_N.unsqueeze(1)
    repeated_NV = torch.where(logits_NV > 0, logits_NV / repetition_N1, logits_NV * repetition_N1)
    logits_NV = torch.where(tally_NV > 0, repeated_NV, logits_NV)
    logits_NV = logits_NV - frequency_N.unsqueeze(1) * counts_NV
    return logits_NV - presence_N.unsqueeze(1) * (counts_NV > 0)
