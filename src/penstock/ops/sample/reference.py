"""Choosing the next token of every row at once.

A row's token is a function of that row alone: its logits, its parameters, its seed and the index of the output. So it
does not matter who else is in the batch, nor in which order, nor whether a neighbour needs a filter that this row does
not. Two choices make that exact rather than likely:

- One uniform number per row, a hash of (seed, index); no generator with a state that neighbours would share.
- The cumulative distribution is summed in integers, in the order of the vocabulary. Integer sums do not depend on how
  a device splits them, and a filtered neighbour changes neither the order nor the sums of an unfiltered row.

Shape letters: N rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WEIGHT_BITS = 40  # the likeliest token weighs 2 ** 40, so that a vocabulary of 2 ** 22 sums below 2 ** 62
GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as signed 64-bit numbers; int64 arithmetic wraps around
MIX_A = 0xBF58476D1CE4E5B9 - 2**64
MIX_B = 0x94D049BB133111EB - 2**64


def sample(
    logits_NV: Tensor,
    temperature_N: Tensor,
    top_k_N: Tensor | None,
    top_p_N: Tensor | None,
    min_p_N: Tensor | None,
    seed_N: Tensor,
    index_N: Tensor,
) -> Tensor:
    """Draw one token per row; the argmax (lowest id of equals) where the temperature is 0.

    The order of the steps is that of transformers:
    1. logits / temperature.
    2. top-k: keep the k largest; 0 keeps all.
    3. top-p: of what is left, renormalized, keep the smallest set of most likely tokens whose mass reaches p.
    4. min-p: keep tokens of at least min_p times the probability of the most likely one.
    5. Draw from what is left, renormalized: the inverse of the cumulative distribution at one uniform number.
    Among equal logits the lower id counts as the larger, so top_k 1 is greedy and a filter never keeps more than asked.

    Args:
        logits_NV: any float dtype; all that follows is float32.
        temperature_N, top_p_N, min_p_N: float32. top_k_N: int64. None for a filter: no row uses it, and nothing is
            sorted for its sake. That never changes a token, it only saves time.
        seed_N, index_N: int64; `index` is the output's place in its sequence.
    Returns: int64 [N].
    """
    logits_NV = logits_NV.float()
    greedy_N = logits_NV.argmax(dim=-1)
    is_greedy_N = temperature_N <= 0
    odds_NV = odds(logits_NV, torch.where(is_greedy_N, 1.0, temperature_N))
    weights_NV = weigh(odds_NV)
    if top_k_N is not None or top_p_N is not None:
        weights_NV = _keep_top(weights_NV, logits_NV, top_k_N, top_p_N)
    if min_p_N is not None:
        weights_NV = torch.where(odds_NV >= min_p_N.unsqueeze(1), weights_NV, 0)
    return torch.where(is_greedy_N, greedy_N, draw(weights_NV, seed_N, index_N))


def odds(logits_NV: Tensor, heat_N: Tensor) -> Tensor:
    """Probabilities relative to the likeliest token: exp cannot overflow, however low the temperature."""
    return ((logits_NV - logits_NV.amax(dim=-1, keepdim=True)) / heat_N.unsqueeze(1)).exp()


def weigh(odds_NV: Tensor) -> Tensor:
    """As integers, whose sums are exact."""
    return (odds_NV * 2.0**WEIGHT_BITS).to(torch.int64)


def draw(weights_NV: Tensor, seed_N: Tensor, index_N: Tensor) -> Tensor:
    """One token per row, with a probability in proportion to its weight."""
    mass_NV = weights_NV.cumsum(dim=-1)
    total_N1 = mass_NV[:, -1:]
    target_N1 = (uniform(seed_N, index_N).unsqueeze(1) * total_N1).to(torch.int64).minimum(total_N1 - 1)
    drawn_N = torch.searchsorted(mass_NV, target_N1, right=True).squeeze(1)
    return drawn_N.clamp(max=weights_NV.shape[1] - 1)  # a row of nan has no mass; its neighbours must not crash for it


def _keep_top(weights_NV: Tensor, logits_NV: Tensor, top_k_N: Tensor | None, top_p_N: Tensor | None) -> Tensor:
    """Zero the weights that top-k and top-p drop."""
    order_NV = logits_NV.argsort(dim=-1, descending=True, stable=True)
    sorted_NV = weights_NV.gather(1, order_NV)
    place_V = torch.arange(weights_NV.shape[1], device=weights_NV.device)
    if top_k_N is not None:
        is_kept_NV = (place_V < top_k_N.unsqueeze(1)) | (top_k_N.unsqueeze(1) <= 0)
        sorted_NV = torch.where(is_kept_NV, sorted_NV, 0)
    if top_p_N is not None:
        mass_NV = sorted_NV.cumsum(dim=-1)
        before_NV = mass_NV - sorted_NV
        is_kept_NV = (before_NV < top_p_N.unsqueeze(1).double() * mass_NV[:, -1:]) | (place_V == 0)
        sorted_NV = torch.where(is_kept_NV, sorted_NV, 0)
    return torch.zeros_like(weights_NV).scatter_(1, order_NV, sorted_NV)


def uniform(seed_N: Tensor, index_N: Tensor) -> Tensor:
    """A number in [0, 1) per row, float64 with 53 random bits: number `index` of the SplitMix64 stream that starts at
    the mixed seed. The same on every device.

    Source: Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators (OOPSLA 2014).
    """
    bits_N = _mix(_mix(seed_N + GOLDEN) + (index_N + 1) * GOLDEN)
    return _shift_right(bits_N, 11).double() * 2.0**-53


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * MIX_A
    z = (z ^ _shift_right(z, 27)) * MIX_B
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Shift in zeros; torch's own shift of int64 copies the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprobs:
    """Natural logs under the model's own distribution. rank: 1 + number of tokens more likely than the chosen one."""

    chosen_N: Tensor
    rank_N: Tensor
    top_ids_NK: Tensor
    top_NK: Tensor


def logprobs(logits_NV: Tensor, ids_N: Tensor, k: int) -> Logprobs:
    """How likely the chosen tokens were, and the k likeliest ones, before temperature and filters.

    Args:
        logits_NV: float32. ids_N: int64. k: 0 or more, at most V.
    """
    logprobs_NV = logits_NV.log_softmax(dim=-1)
    chosen_N1 = logprobs_NV.gather(1, ids_N.unsqueeze(1))
    top = logprobs_NV.topk(k, dim=-1)
    rank_N = (logprobs_NV > chosen_N1).sum(dim=-1) + 1
    return Logprobs(chosen_N=chosen_N1.squeeze(1), rank_N=rank_N, top_ids_NK=top.indices, top_NK=top.values)
