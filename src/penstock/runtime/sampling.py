"""Who samples in a step, and how: gathered once per membership, applied every step.

Shape letters: N sampling rows, V vocabulary, L rows that asked for logprobs.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from penstock.ops.sample import logprobs, sample
from penstock.runtime.logits import LogitsStage
from penstock.runtime.readback import LogprobsHost
from penstock.runtime.rows import Int, Real, Rows
from penstock.runtime.transfer import Ints, send


class Draw:
    """The sampling rows of a step and their parameters, in the order of their logits."""

    def __init__(self, members: Ints, rows: Rows, logits: LogitsStage) -> None:
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
        has_k, has_p = ints_host[:, Int.TOP_K].any(), (reals_host[:, Real.TOP_P] < 1).any()
        has_min_p = reals_host[:, Real.MIN_P].any()
        if rows.device.type != "cpu" and (has_k or has_p or has_min_p):  # two forms, not eight, are to be compiled
            has_k = has_p = has_min_p = True
        self._top_k_N = ints[Int.TOP_K] if has_k else None
        self._top_p_N = reals[Real.TOP_P] if has_p else None
        self._min_p_N = reals[Real.MIN_P] if has_min_p else None
        self._changes = logits.gather(members)
        asked = rows.ints.host[members, Int.LOGPROBS]
        at_L = np.flatnonzero(asked)
        self.logprobs_at: tuple[int, ...] = tuple(at_L.tolist())
        self._logprobs_counts = tuple((asked[at_L] - 1).tolist())
        self._logprobs_at_L = send(at_L, rows.device)

    def draw(self, logits_NV: Tensor, positions_N: Tensor) -> tuple[Tensor, LogprobsHost | None]:
        """Choose ids_N, and start the copy of what was asked about them. positions_N: of each row's new token."""
        index_N = positions_N - self._prompt_tokens_N
        raw_LV = logits_NV.index_select(0, self._logprobs_at_L) if self._logprobs_counts else None
        for change in self._changes:
            change.apply(logits_NV, index_N)
        if self._is_greedy:
            ids_N = logits_NV.argmax(dim=-1)
        else:
            ids_N = sample(
                logits_NV, self._temperature_N, self._top_k_N, self._top_p_N, self._min_p_N, self._seed_N, index_N
            )
        for change in self._changes:
            change.note(ids_N, index_N)
        if raw_LV is None:
            return ids_N, None
        ids_L = ids_N.index_select(0, self._logprobs_at_L)
        found = logprobs(raw_LV, ids_L, max(self._logprobs_counts))
        return ids_N, LogprobsHost.fetched(ids_L, found, self._logprobs_counts)
