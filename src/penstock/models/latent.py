"""Latent attention (DeepSeek-V2, arXiv 2405.04434), with what every head would unpack from a latent moved to its query.

All heads share one key: a latent, from which each would make keys and values of its own, and a rotated part. A head's
score is q . (U latent) = (U' q) . latent, and its output V (sum of latents): so the pool holds latents, one KV head,
and the attention op is the usual one. Values are the same latents, kept a second time.

Shape letters: T tokens, H heads, n unrotated and r rotated features of a head, L latent features, d = L + r, v features
of a value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812, the name that everybody reads
from torch import Tensor

from penstock.models.parts import Angles, Entrance, Norm, Scope, attend
from penstock.models.softmax import LayerAttention
from penstock.models.spec import LatentAttentionSpec
from penstock.ops.batch import SegmentBatch
from penstock.ops.rope import rope
from penstock.ops.write_kv import write_kv


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """q: from the hidden state, or from a latent of its own (q_a, then q_norm) if the spec has a q_rank."""

    spec: LatentAttentionSpec
    q_a: Tensor | None
    q_a_bias: Tensor | None
    q_norm: Norm | None
    q: Tensor
    kv_a: Tensor
    kv_a_bias: Tensor | None
    kv_norm: Norm
    key_HnL: Tensor
    value_HvL: Tensor
    out: Tensor
    out_bias: Tensor | None
    paged: LayerAttention

    @classmethod
    def of(cls, spec: LatentAttentionSpec, scope: Scope, paged: LayerAttention) -> LatentAttention:
        unpack_HxL = scope["kv_b"].view(spec.q_heads, spec.nope_dim + spec.v_dim, spec.kv_rank)
        return cls(
            spec=spec,
            q_a=scope.get("q_a"),
            q_a_bias=scope.get("q_a_bias"),
            q_norm=None if spec.q_rank is None else Norm(scope["q_a_norm"], spec.norm),
            q=scope["q"],
            kv_a=scope["kv_a"],
            kv_a_bias=scope.get("kv_a_bias"),
            kv_norm=Norm(scope["kv_a_norm"], spec.norm),
            key_HnL=unpack_HxL[:, : spec.nope_dim],
            value_HvL=unpack_HxL[:, spec.nope_dim :],
            out=scope["out"],
            out_bias=scope.get("out_bias"),
            paged=paged,
        )

    def __call__(self, entrance: Entrance, batch: SegmentBatch, kv: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        """(what attention adds, residual stream)."""
        spec, (x_TD, total_TD) = self.spec, entrance.normed()
        q_THn, q_THr = torch.split(self._queries(x_TD), [spec.nope_dim, spec.rope.dim], dim=-1)
        shared_Td = F.linear(x_TD, self.kv_a, self.kv_a_bias)
        latent_TL, k_Tr = torch.split(shared_Td, [spec.kv_rank, spec.rope.dim], dim=-1)
        latent_TL, _ = self.kv_norm(latent_TL)
        rotated = rope(_by_halves(torch.cat((q_THr, k_Tr.unsqueeze(1)), dim=1)), *angles.tokens[spec.rope])
        k_T1d = torch.cat((latent_TL.unsqueeze(1), rotated[:, spec.q_heads :]), dim=-1)
        write_kv(k_T1d, k_T1d, kv, batch.slots_T)
        q_THL = torch.einsum("thn,hnl->thl", q_THn, self.key_HnL)
        q_THd = torch.cat((q_THL, rotated[:, : spec.q_heads]), dim=-1)
        q_sinks_THd = None
        if batch.sinks is not None:
            q_sinks_THd = torch.cat((q_THL, rope(_by_halves(q_THr), *angles.sinks[spec.rope])), dim=-1)
        out_THd, _ = attend(q_THd, q_sinks_THd, kv, batch, spec.scale, spec.window_tokens, None, self.paged)
        out_THv = torch.einsum("thl,hvl->thv", out_THd[..., : spec.kv_rank], self.value_HvL)
        return F.linear(out_THv.flatten(1), self.out, self.out_bias), total_TD

    def _queries(self, x_TD: Tensor) -> Tensor:
        if self.q_a is not None and self.q_norm is not None:
            x_TD, _ = self.q_norm(F.linear(x_TD, self.q_a, self.q_a_bias))
        return F.linear(x_TD, self.q).view(len(x_TD), self.spec.q_heads, -1)


def _by_halves(x_THr: Tensor) -> Tensor:
    """Pairs that rotate together are neighbours in the checkpoint, for our op they are half a head apart. Queries and
    keys change alike, so their products stay."""
    return torch.cat((x_THr[..., ::2], x_THr[..., 1::2]), dim=-1)
