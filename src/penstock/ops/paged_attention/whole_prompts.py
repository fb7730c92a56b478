"""Whole prompts through cuDNN, which on Hopper is 1.5 times as fast as our kernel in Triton (530 against 350 TFLOP/s,
4,096 tokens, 16 heads of 128, H200).

It wants keys in one piece and prepares a plan for every shape. So only prompts without context go this way, longer
ones, and their length is rounded up: behind a causal mask nobody sees what is added. Gathering their keys costs a
hundredth of attending to them.

Shape letters: T tokens of the step, N tokens of a prompt, P of these and what is added, H query heads, K KV heads,
D head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812, the name that everybody reads
from torch import Tensor

LEAST_TOKENS = 1024
STEP_TOKENS = 512  # of the lengths that plans are made for
MOST_HEAD_DIM = 128
FIRST_CAPABILITY = (9, 0)


def can_serve(q_THD: Tensor, kv: Tensor, window_tokens: int | None, soft_cap: float | None) -> bool:
    """Whether prompts of this kind may go this way."""
    return (
        q_THD.device.type == "cuda"
        and q_THD.dtype in (torch.bfloat16, torch.float16)
        and kv.dtype is q_THD.dtype
        and window_tokens is None
        and soft_cap is None
        and q_THD.shape[2] <= MOST_HEAD_DIM
        and q_THD.shape[2] % 8 == 0
        and torch.cuda.get_device_capability(q_THD.device) >= FIRST_CAPABILITY
    )


def attend(q_THD: Tensor, first: int, n_tokens: int, kv: Tensor, blocks: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(out_NHD, lse_NH) of tokens [first, first + n_tokens) of the step, a prompt whose keys lie in `blocks`, and no
    others before them.
    """
    n_padded = -(-n_tokens // STEP_TOKENS) * STEP_TOKENS
    q_PHD = q_THD[first : first + n_padded]  # whose tokens are added does not matter
    if len(q_PHD) < n_padded:
        q_PHD = F.pad(q_PHD, (0, 0, 0, 0, 0, n_padded - len(q_PHD)))
    held_tokens = len(blocks) * kv.shape[2]
    if held_tokens < n_padded:  # nobody sees these keys, but they must be numbers: zero times NaN is NaN
        blocks = torch.cat((blocks, blocks[:1].expand(-(-(n_padded - held_tokens) // kv.shape[2]))))
    planes = [_gathered(plane, blocks)[:n_padded] for plane in kv]
    if held_tokens > n_tokens:  # the last block ends with what another sequence may have left there
        for plane_PKD in planes:
            plane_PKD[n_tokens:held_tokens].zero_()
    k_1KPD, v_1KPD = (plane_PKD.transpose(0, 1).unsqueeze(0) for plane_PKD in planes)
    out_1HPD, lse_1HP, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q_PHD.transpose(0, 1).unsqueeze(0), k_1KPD, v_1KPD, None, True, 0.0, True, False, scale=scale
    )
    return out_1HPD[0].transpose(0, 1)[:n_tokens], lse_1HP.view(len(out_1HPD[0]), -1).T[:n_tokens]


def _gathered(plane: Tensor, blocks: Tensor) -> Tensor:
    """Keys or values of some blocks, one after the other. Rows of a matrix: torch copies those at full speed."""
    return plane.flatten(1).index_select(0, blocks).view(-1, *plane.shape[2:])
