"""How one rank meets the others while it is built, whichever it is; and the executor that leads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from penstock.core.errors import PenstockError
from penstock.core.executor import Executor, ModelFacts, StepResult, Ticket
from penstock.core.plan import Plan
from penstock.models.spec import Shard
from penstock.runtime.rank_messages import Fits

if TYPE_CHECKING:
    import torch

    from penstock.models.peers import Peers


class Ranks(Protocol):
    """The ranks of a model, seen by one of them. Each calls these once, in this order."""

    @property
    def shard(self) -> Shard: ...

    def agree(self, fits: Fits) -> Fits:
        """How many blocks every rank has room for, given how many this one has."""
        ...

    def connect(self, device: torch.device) -> Peers:
        """Wait until all ranks are there."""
        ...


class Followers(Protocol):
    """The other ranks while they run; see `Crew`."""

    def send(self, plan: Plan) -> None: ...

    def note(self, tokens: npt.NDArray[np.int32]) -> None: ...

    def check(self) -> None: ...

    def why_lost(self) -> PenstockError | None: ...

    def close(self) -> None: ...


class LeadingExecutor:
    """The first rank's executor, and the same plans for the other ranks. Raises EngineDied once one of them is gone."""

    def __init__(self, own: Executor, followers: Followers) -> None:
        self._own = own
        self._followers = followers

    @property
    def facts(self) -> ModelFacts:
        """Of one rank: bytes of weights and blocks are what each of them holds."""
        return self._own.facts

    @property
    def max_rows(self) -> int:
        return self._own.max_rows

    def allocate(self, n_blocks: tuple[int, ...], n_host_blocks: tuple[int, ...] = ()) -> None:
        """Done on every rank while they were built."""
        raise AssertionError("ranks agree on their pools while they are built")

    def submit(self, plan: Plan) -> Ticket:
        self._followers.send(plan)  # first, so that they start as early as this one
        return self._own.submit(plan)

    def collect(self, ticket: Ticket) -> StepResult:
        try:
            result = self._own.collect(ticket)
        except Exception as error:
            lost = self._followers.why_lost()
            if lost is None:
                raise
            raise lost from error
        self._followers.check()  # without an error, too: what was computed with a rank that is gone is worthless
        self._followers.note(result.tokens)
        return result

    def close(self) -> None:
        """This rank first: its last step may still wait for the others."""
        self._own.close()
        self._followers.close()
