"""Turn away at the door what would come too late."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from penstock.core.plan import Plan
from penstock.core.request import Request
from penstock.core.sequence import SequenceView
from penstock.core.view import Admission, Doorkeeper, Observer, View
from penstock.policy.admit.follow import STEP_TOKENS
from penstock.policy.admit.watermark import Watermark
from penstock.policy.options import check_option

KEPT_PER_STEP = 0.99  # of what was seen: half after 69 steps


class _Pace:
    """What steps take of late, from the times at which they were planned."""

    def __init__(self) -> None:
        self.last_s: float | None = None  # None: nobody ran
        self._last_tokens = 0  # of prompts, in the step before
        self._seconds = self._steps = 0.0
        self._chunk_seconds = self._chunk_steps = self._chunk_tokens = 0.0

    def note(self, now_s: float, chunk_tokens: int) -> None:
        """A step was planned; the one before it took until now."""
        if self.last_s is not None:
            took_s = now_s - self.last_s
            self._seconds = KEPT_PER_STEP * self._seconds + took_s
            self._steps = KEPT_PER_STEP * self._steps + 1
            if self._last_tokens:
                self._chunk_seconds = KEPT_PER_STEP * self._chunk_seconds + took_s
                self._chunk_steps = KEPT_PER_STEP * self._chunk_steps + 1
                self._chunk_tokens = KEPT_PER_STEP * self._chunk_tokens + self._last_tokens
        self.last_s, self._last_tokens = now_s, chunk_tokens

    def first_token_s(self, tokens: int) -> float:
        """Until so many prompt tokens are computed and a token is drawn; one step is under way, one is planned."""
        if not self._chunk_tokens:
            return 0.0
        return tokens * self._chunk_seconds / self._chunk_tokens + 2 * self._chunk_seconds / self._chunk_steps

    @property
    def step_s(self) -> float:
        return self._seconds / self._steps if self._steps else 0.0


@dataclass
class InTime(Observer, Doorkeeper):
    """Refuse at the door what would not keep its TTFT or TPOT; whoever is let in starts as with `watermark`.

    A first token is expected when all prompt tokens that wait already and those of the request are computed, at the
    pace of late; the time per token is that of steps of late. Either must be within `share` of the limit. `ttft_s` and
    `tpot_s` hold for requests without such a limit of their own; 0: they have none, and are always let in.
    """

    ttft_s: float = 0.0
    tpot_s: float = 0.0
    share: float = 0.8
    reserve_frac: float = 0.02
    follow: bool = True
    follow_beyond_tokens: int = STEP_TOKENS

    def __post_init__(self) -> None:
        check_option("ttft_s", self.ttft_s, 0 <= self.ttft_s < inf, "give seconds, or 0 for no limit")
        check_option("tpot_s", self.tpot_s, 0 <= self.tpot_s < inf, "give seconds, or 0 for no limit")
        check_option("share", self.share, 0 < self.share <= 1, "give a share above 0, at most 1")
        self._watermark = Watermark(self.reserve_frac, self.follow, self.follow_beyond_tokens)
        self._pace = _Pace()

    def admit(self, seq: SequenceView, view: View) -> Admission:
        return self._watermark.admit(seq, view)

    def late_by_s(self, request: Request, view: View) -> float | None:
        if not view.running:
            return None  # nobody makes it wait, and what steps take is not known before some were seen
        limits = request.objective
        ttft_s = self.ttft_s if limits.ttft_s is None else limits.ttft_s
        tpot_s = self.tpot_s if limits.tpot_s is None else limits.tpot_s
        late_s = 0.0
        if ttft_s:
            tokens = len(request.prompt) + sum(seq.prefill_left_tokens for seq in (*view.waiting, *view.prefilling))
            first_s = view.now_s - request.arrival_s + self._pace.first_token_s(tokens)
            late_s = max(late_s, first_s - self.share * ttft_s)
        if tpot_s:
            late_s = max(late_s, self._pace.step_s - self.share * tpot_s)
        return late_s if late_s > 0 else None

    def on_step(self, plan: Plan, view: View) -> None:
        self._pace.note(view.now_s, plan.tokens - plan.decode.tokens)

    def on_finish(self, seq: SequenceView, view: View) -> None:
        if not view.running:
            self._pace.last_s = None
