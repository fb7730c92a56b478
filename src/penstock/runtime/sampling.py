"""Who samples in a step, and how: gathered once per membership, applied every step.

Shape letters: N sampling rows, V vocabulary, P pairs of (sampling row, stop id), L rows that asked for logprobs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from penstock.core.executor import ModelFacts
from penstock.core.plan import RowStart
from penstock.ops.sample import logprobs, sample
from penstock.runtime.readback import LogprobsHost
from penstock.runtime.rows import Int, Real, Rows
from penstock.runtime.transfer import Ints, send, send_all


def blocked_ids(start: RowStart, facts: ModelFacts) -> list[int]:
    """The ids that would end this sequence, so that must not come before its `min_tokens`."""
    ends = set(start.sampling.stop_token_ids)
    if not start.sampling.ignore_eos:
        ends |= facts.stop_token_ids
    return sorted(token for token in ends if 0 <= token < facts.vocab_size)


class Draw:
    """The sampling rows of a step and their parameters, in the order of their logits."""

    def __init__(self, members: Ints, rows: Rows, facts: ModelFacts) -> None:
        self.members_host_N = members
        self.members_N = send(members, rows.device)
        reals = rows.reals.dev.index_select(0, self.members_N).t().contiguous()
        ints = rows.ints.dev.index_select(0, self.members_N).t().contiguous()
        self._temperature_N, self._seed_N = reals[Real.TEMPERATURE], ints[Int.SEED]
        self._prompt_tokens_N = ints[Int.PROMPT_TOKENS]
        # the host knows which filters no drawing row uses: those do not run
        heat = rows.reals.host[members, Real.TEMPERATURE]
        reals_host, ints_host = rows.reals.host[members[heat > 0]], rows.ints.host[members[heat > 0]]
        self._is_greedy = not len(reals_host)
        self._top_k_N = ints[Int.TOP_K] if ints_host[:, Int.TOP_K].any() else None
        self._top_p_N = reals[Real.TOP_P] if (reals_host[:, Real.TOP_P] < 1).any() else None
        self._min_p_N = reals[Real.MIN_P] if reals_host[:, Real.MIN_P].any() else None
        self._gather_blocked(rows, facts)
        asked = rows.ints.host[members, Int.LOGPROBS]
        at_L = np.flatnonzero(asked)
        self.logprobs_at: tuple[int, ...] = tuple(at_L.tolist())
        self._logprobs_counts = tuple((asked[at_L] - 1).tolist())
        self._logprobs_at_L = send(at_L, rows.device)

    def _gather_blocked(self, rows: Rows, facts: ModelFacts) -> None:
        """Pairs of (sampling row, id that it must not draw yet); None where no member has `min_tokens`."""
        self._blocked: tuple[Tensor, Tensor, Tensor] | None = None
        pairs = [
            (at, token, start.sampling.min_tokens)
            for at in np.flatnonzero(rows.ints.host[self.members_host_N, Int.MIN_TOKENS]).tolist()
            for start in (rows.start(self.members_host_N[at]),)
            for token in blocked_ids(start, facts)
        ]
        if pairs:
            at_P, ids_P, until_P = send_all(tuple(np.array(pairs, np.int64).T), rows.device)
            self._blocked = at_P, ids_P, until_P

    def draw(self, logits_NV: Tensor, positions_N: Tensor) -> tuple[Tensor, LogprobsHost | None]:
        """Choose ids_N, and start the copy of what was asked about them. positions_N: of each row's new token."""
        index_N = positions_N - self._prompt_tokens_N
        raw_LV = logits_NV.index_select(0, self._logprobs_at_L) if self._logprobs_counts else None
        if self._blocked is not None:
            at_P, ids_P, until_P = self._blocked
            is_early_P = index_N.index_select(0, at_P) < until_P
            logits_NV[at_P, ids_P] = logits_NV[at_P, ids_P].masked_fill(is_early_P, -torch.inf)
        if self._is_greedy:
            ids_N = logits_NV.argmax(dim=-1)
        else:
            ids_N = sample(
                logits_NV, self._temperature_N, self._top_k_N, self._top_p_N, self._min_p_N, self._seed_N, index_N
            )
        if raw_LV is None:
            return ids_N, None
        ids_L = ids_N.index_select(0, self._logprobs_at_L)
        found = logprobs(raw_LV, ids_L, max(self._logprobs_counts))
        return ids_N, LogprobsHost.fetched(ids_L, found, self._logprobs_counts)
