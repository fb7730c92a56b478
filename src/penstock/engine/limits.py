"""How much may wait. A bounded queue refuses what it could only keep waiting."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.core.errors import InvalidRequest, Overloaded
from penstock.core.request import Request
from penstock.engine.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """Most sequences and most prompt tokens that wait; a request of n samples counts n times."""

    max_queued_requests: int = 4096
    max_queued_tokens: int = 4_194_304

    def check(self, n_queued: int, queued_tokens: int, request: Request, ledger: Ledger, now_s: float) -> None:
        """Raise Overloaded, with the time after which to try again, if the request would go over a limit.

        InvalidRequest for one that no empty queue would take: trying again would not help.
        """
        n = request.sampling.n
        if n > self.max_queued_requests:
            raise InvalidRequest(
                f"n is {n}, and the queue takes {self.max_queued_requests} samples at a time; ask for fewer",
                param="n",
            )
        if n_queued + n > self.max_queued_requests:
            raise Overloaded(
                f"the queue holds {n_queued} of at most {self.max_queued_requests} requests; try again later",
                reason="max_queued_requests",
                retry_after_s=ledger.drain_s(max(1, n_queued), now_s),
            )
        if n_queued and queued_tokens + n * len(request.prompt) > self.max_queued_tokens:
            raise Overloaded(
                f"the queue holds {queued_tokens} of at most {self.max_queued_tokens} prompt tokens; try again later",
                reason="max_queued_tokens",
                retry_after_s=ledger.drain_s(max(1, n_queued), now_s),
            )
