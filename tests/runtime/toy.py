"""A tiny decoder of real attention over paged state, and the same model without pages: the truth for these tests.

One layer of each kind of state group can be asked for: PAGED sees every token, WINDOWED the first and the last ones,
RECURRENT a decayed sum. Float64, so that the order of sums never decides a sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from penstock.core.executor import ModelFacts, StateKind, StateSpec
from penstock.ops.batch import SegmentBatch

VOCAB, WIDTH = 23, 8
WINDOW, SINKS, DECAY = 6, 2, 0.7
MAX_TOKENS = 64
STOP = 2


class ToyDecoder:
    """kinds: of each layer; equal kinds share a state group."""

    def __init__(self, kinds: Sequence[StateKind] = (StateKind.PAGED,) * 3, block_tokens: int = 4) -> None:
        weights = torch.Generator().manual_seed(7)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=weights, dtype=torch.float64)

        self.kinds = tuple(kinds)
        self.table = randn(VOCAB, WIDTH)
        self.places = randn(MAX_TOKENS, WIDTH)
        self.qkv = randn(len(kinds), WIDTH, 3 * WIDTH) / math.sqrt(WIDTH)
        self.head = randn(WIDTH, VOCAB) * 0.6
        self.facts = ModelFacts(
            name="toy",
            n_layers=len(kinds),
            vocab_size=VOCAB,
            max_model_tokens=MAX_TOKENS,
            stop_token_ids=frozenset({STOP}),
            states=tuple(self._state(kind, block_tokens) for kind in dict.fromkeys(kinds)),
            weight_bytes=0,
        )

    def _state(self, kind: StateKind, block_tokens: int) -> StateSpec:
        is_recurrent = kind is StateKind.RECURRENT
        return StateSpec(
            name=kind.value,
            kind=kind,
            layers=tuple(layer for layer, its in enumerate(self.kinds) if its is kind),
            block_tokens=MAX_TOKENS if is_recurrent else block_tokens,  # one block, whatever the length
            block_bytes=1,
            window_tokens=WINDOW if kind is StateKind.WINDOWED else None,
            sink_tokens=SINKS if kind is StateKind.WINDOWED else 0,
            chunk_tokens=MAX_TOKENS if kind is StateKind.WINDOWED else None,
        )

    def new_pool(self, layer: int, n_blocks: int) -> Tensor:
        if self.kinds[layer] is StateKind.RECURRENT:
            return torch.zeros(1, n_blocks, WIDTH, dtype=torch.float64)
        block_tokens = next(spec.block_tokens for spec in self.facts.states if layer in spec.layers)
        return torch.zeros(2, n_blocks, block_tokens, 1, WIDTH, dtype=torch.float64)

    def review(self) -> bool:
        return False

    def embed(self, ids_T: Tensor) -> Tensor:
        return self.table[ids_T]

    def run_layers(self, x_TD: Tensor, batch: SegmentBatch, kv: Sequence[Tensor], first: int, stop: int) -> Tensor:
        for layer in range(first, stop):
            q_TD, k_TD, v_TD = self._project(layer, x_TD, batch.positions_T)
            pool = kv[layer]
            if self.kinds[layer] is not StateKind.RECURRENT:
                pool.view(2, -1, WIDTH)[0, batch.slots_T] = k_TD
                pool.view(2, -1, WIDTH)[1, batch.slots_T] = v_TD
            mixed = []
            for s, kv_len in enumerate(batch.kv_lens_host):
                own = slice(batch.q_starts_host[s], batch.q_starts_host[s + 1])
                start = kv_len - (own.stop - own.start)
                if self.kinds[layer] is StateKind.RECURRENT:
                    state = pool[0, batch.tables_SB[s, 0]] if start else torch.zeros(WIDTH, dtype=torch.float64)
                    out = decayed_sums(v_TD[own], state)
                    pool[0, batch.tables_SB[s, 0]] = out[-1]
                else:
                    n_blocks = -(-kv_len // batch.block_tokens)
                    keys, values = pool[:, batch.tables_SB[s, :n_blocks]].reshape(2, -1, WIDTH)[:, :kv_len]
                    is_seen_TL = seen(start, own.stop - own.start, kv_len, self.kinds[layer], n_sinks=0)
                    if batch.sinks is not None and self.kinds[layer] is StateKind.WINDOWED:  # the same for all tokens
                        sinks = pool.view(2, -1, WIDTH)[:, batch.sinks.slots_TK[own.start]]
                        keys, values = (torch.cat(pair) for pair in zip(sinks, (keys, values), strict=True))
                        is_seen_TL = torch.cat((batch.sinks.is_seen_TK[own], is_seen_TL), dim=1)
                    out = attend(q_TD[own], keys, values, is_seen_TL)
                mixed.append(out)
            x_TD = x_TD + torch.tanh(torch.cat(mixed))
        return x_TD

    def logits(self, x_ND: Tensor) -> Tensor:
        return (x_ND @ self.head).float()

    def _project(self, layer: int, x_TD: Tensor, positions_T: Tensor) -> tuple[Tensor, ...]:
        normed = x_TD / (x_TD.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return ((normed + self.places[positions_T]) @ self.qkv[layer]).split(WIDTH, dim=-1)

    def reference(self, ids: Sequence[int]) -> Tensor:
        """Logits [tokens, vocabulary] of one sequence: no pages, no chunks, no neighbours."""
        x_TD = self.table[list(ids)]
        for layer, kind in enumerate(self.kinds):
            q_TD, k_TD, v_TD = self._project(layer, x_TD, torch.arange(len(ids)))
            if kind is StateKind.RECURRENT:
                out = decayed_sums(v_TD, torch.zeros(WIDTH, dtype=torch.float64))
            else:
                out = attend(q_TD, k_TD, v_TD, seen(0, len(ids), len(ids), kind, SINKS))
            x_TD = x_TD + torch.tanh(out)
        return self.logits(x_TD)


def seen(start: int, n_tokens: int, n_keys: int, kind: StateKind, n_sinks: int) -> Tensor:
    """Which keys each of the tokens from `start` on reads."""
    at_T1 = torch.arange(start, start + n_tokens).unsqueeze(1)
    at_L = torch.arange(n_keys)
    is_seen_TL = at_L <= at_T1
    if kind is StateKind.WINDOWED:
        is_seen_TL &= (at_L < n_sinks) | (at_L > at_T1 - WINDOW)
    return is_seen_TL


def attend(q_TD: Tensor, k_LD: Tensor, v_LD: Tensor, is_seen_TL: Tensor) -> Tensor:
    scores_TL = (q_TD @ k_LD.T / math.sqrt(WIDTH)).masked_fill(~is_seen_TL, -torch.inf)
    return scores_TL.softmax(-1) @ v_LD


def decayed_sums(v_TD: Tensor, state: Tensor) -> Tensor:
    sums = []
    for v in v_TD:
        state = DECAY * state + v
        sums.append(state)
    return torch.stack(sums)
