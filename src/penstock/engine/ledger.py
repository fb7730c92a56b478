"""Every accepted request ends in exactly one record, whatever the end was; and how fast requests leave."""

from __future__ import annotations

import json
import logging
from collections import Counter, deque

from penstock.core.request import Request
from penstock.core.sequence import FinishReason, Sequence

log = logging.getLogger("penstock.requests")


class Ledger:
    """Counts accepted, refused and ended requests, and writes one log line per end."""

    def __init__(self) -> None:
        self.accepted = 0
        self.refused: Counter[str] = Counter()
        self.ended: Counter[FinishReason] = Counter()
        self._open: dict[str, list[Sequence]] = {}
        self._ended_at_s: deque[float] = deque(maxlen=256)

    @property
    def n_open(self) -> int:
        return len(self._open)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._open

    def accept(self, request: Request, samples: list[Sequence]) -> None:
        self.accepted += 1
        self._open[request.id] = samples

    def refuse(self, reason: str) -> None:
        self.refused[reason] += 1

    def samples(self, request_id: str) -> list[Sequence]:
        """The samples of an open request; empty if it is over or was never accepted."""
        return self._open.get(request_id, [])

    def note_end(self, seq: Sequence, now_s: float) -> None:
        """A sample ended. When it was the last one, the request ends, and its record is written."""
        samples = self._open[seq.request.id]
        reasons = [sample.finish_reason for sample in samples]
        if None in reasons:
            return
        del self._open[seq.request.id]
        reason = max((r for r in reasons if r is not None), key=_SEVERITY.index)
        self.ended[reason] += 1
        self._ended_at_s.append(now_s)
        if log.isEnabledFor(logging.INFO):
            log.info("%s", _record(samples, reason, now_s))

    def end_all(self, reason: FinishReason, now_s: float) -> None:
        """The engine ends, and with it what is open. Only the books: its sequences move no more."""
        for samples in self._open.values():
            self.ended[reason] += 1
            if log.isEnabledFor(logging.INFO):
                log.info("%s", _record(samples, reason, now_s))
        self._open.clear()

    def drain_s(self, n_ahead: int, now_s: float) -> float:
        """Seconds until `n_ahead` more requests have ended, at the rate of late; 1 s while that is unknown."""
        if len(self._ended_at_s) < 2:
            return 1.0
        span_s = max(now_s - self._ended_at_s[0], 1e-3)
        return min(max(n_ahead * span_s / len(self._ended_at_s), 1.0), 60.0)


# The worst end of any sample is the end of the request.
_SEVERITY = [FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT, FinishReason.ERROR]


def log_lost(request: Request, now_s: float) -> None:
    """The record of a request whose engine was killed; what only the engine knew is left out."""
    record = {
        "event": "request_end",
        "id": request.id,
        "reason": FinishReason.ERROR.value,
        "prompt_tokens": len(request.prompt),
        "samples": request.sampling.n,
        "e2e_s": round(now_s - request.arrival_s, 6),
    }
    log.info("%s", json.dumps(record))


def _record(samples: list[Sequence], reason: FinishReason, now_s: float) -> str:
    """One JSON object on one line; ids are escaped by JSON, prompts never appear."""
    request = samples[0].request
    first_s = min((s.first_token_s for s in samples if s.first_token_s is not None), default=None)
    planned_s = samples[0].first_planned_s
    return json.dumps(
        {
            "event": "request_end",
            "id": request.id,
            "reason": reason.value,
            "prompt_tokens": len(request.prompt),
            "cached_tokens": samples[0].cached_tokens,
            "output_tokens": sum(s.output_tokens for s in samples),
            "samples": len(samples),
            "preemptions": sum(s.preemptions for s in samples),
            "queue_s": None if planned_s is None else round(planned_s - request.arrival_s, 6),
            "ttft_s": None if first_s is None else round(first_s - request.arrival_s, 6),
            "e2e_s": round(now_s - request.arrival_s, 6),
        }
    )
