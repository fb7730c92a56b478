"""Shape letters: T tokens, H heads, D head dim."""

from __future__ import annotations

import torch
from torch import Tensor


def add_sink(out_THD: Tensor, lse_TH: Tensor, sinks_H: Tensor) -> tuple[Tensor, Tensor]:
    """Attention as it would be with one more key, of score `sinks_H` and value 0.

    That key takes its share of the softmax and gives nothing, so attention over the real keys and its log-sum-exp are
    all that is needed: no attention kernel has to know of sinks.

    Args:
        out_THD, lse_TH: of attention over the real keys; lse float32, natural log, -inf where there is no key.
        sinks_H: any float dtype.
    Returns: (out, lse), like the inputs. Where there is no key, `out` is 0.
    Source: GPT-OSS (arXiv 2508.10925); softmax with a bias in the denominator.
    """
    sinks_1H = sinks_H.float().unsqueeze(0)
    share_TH1 = torch.sigmoid(lse_TH - sinks_1H).unsqueeze(-1)
    return (out_THD.float() * share_TH1).to(out_THD.dtype), torch.logaddexp(lse_TH, sinks_1H)
