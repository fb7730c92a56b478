"""The bound of the queue, to the sample."""

from __future__ import annotations

import pytest

from penstock.core.errors import InvalidRequest, Overloaded
from penstock.core.request import Request, SamplingParams
from penstock.engine.ledger import Ledger
from penstock.engine.limits import QueueLimits


def check(n_queued: int, n: int, cap: int = 12) -> None:
    request = Request(id="r", prompt=[1, 2, 3], sampling=SamplingParams(n=n))
    QueueLimits(max_queued_requests=cap).check(n_queued, 3 * n_queued, request, Ledger(), 0.0)


def test_every_sample_counts_up_to_the_cap():
    check(4, n=8)
    with pytest.raises(Overloaded, match="holds 5 of at most 12"):
        check(5, n=8)


def test_what_an_empty_queue_would_not_take_is_not_told_to_try_again():
    with pytest.raises(InvalidRequest, match="ask for fewer"):
        check(0, n=13)
