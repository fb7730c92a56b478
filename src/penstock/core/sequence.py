"""A sequence is the running state of one sample of a request; its life is a table of legal moves."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from enum import Enum, StrEnum
from typing import Protocol

from penstock.core.errors import IllegalTransition
from penstock.core.request import Objective, Request


class SeqState(Enum):
    """Where a sequence stands. `state` is always explicit, never inferred from counters."""

    WAITING = "waiting"  # in the queue; holds no memory (new, forked-to-be, or preempted by recompute)
    RUNNING = "running"  # has a row and memory; may be planned
    PAUSED = "paused"  # has a row and memory; not planned until it is admitted again
    SWAPPED = "swapped"  # in the queue; its state lies in host memory
    HANDING_OFF = "handing-off"  # its state moves to another instance
    FINISHED = "finished"
    ABORTED = "aborted"

    __hash__ = object.__hash__  # members are the only objects of their kind; Enum's own goes by the name, in Python


S = SeqState
NEXT: Mapping[SeqState, frozenset[SeqState]] = {
    S.WAITING: frozenset({S.RUNNING, S.FINISHED, S.ABORTED}),  # FINISHED: its token in flight was the last one
    S.RUNNING: frozenset({S.WAITING, S.PAUSED, S.SWAPPED, S.HANDING_OFF, S.FINISHED, S.ABORTED}),
    S.PAUSED: frozenset({S.RUNNING, S.WAITING, S.SWAPPED, S.FINISHED, S.ABORTED}),
    S.SWAPPED: frozenset({S.RUNNING, S.WAITING, S.FINISHED, S.ABORTED}),
    S.HANDING_OFF: frozenset({S.RUNNING, S.FINISHED, S.ABORTED}),
    S.FINISHED: frozenset(),
    S.ABORTED: frozenset(),
}
ENDED = frozenset({S.FINISHED, S.ABORTED})
RESIDENT = frozenset({S.RUNNING, S.PAUSED, S.HANDING_OFF})


class FinishReason(StrEnum):
    """Why a sequence ended; the values are what clients read."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class StepCounter:
    """Steps that a group of decoding sequences has taken together; they all advance by one token per step."""

    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps = 0


class SequenceView(Protocol):
    """What a policy may read of a sequence. Everything here is a fact; the output length to come is not among them."""

    @property
    def id(self) -> str: ...
    @property
    def request(self) -> Request: ...
    @property
    def state(self) -> SeqState: ...
    @property
    def row(self) -> int | None: ...
    @property
    def objective(self) -> Objective: ...
    @property
    def arrival_s(self) -> float: ...
    @property
    def total_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def output_limit_tokens(self) -> int: ...
    @property
    def planned_tokens(self) -> int: ...
    @property
    def prefill_left_tokens(self) -> int: ...
    @property
    def pass_stop_tokens(self) -> int | None: ...
    @property
    def layers_done(self) -> int: ...
    @property
    def preemptions(self) -> int: ...
    @property
    def finish_reason(self) -> FinishReason | None: ...


class Sequence:
    """One sample of a request. Only the scheduler changes it; policies see it as a `SequenceView`.

    tokens: the prompt, then the outputs that were collected. planned_tokens: how many of them (and of the outputs
    still in flight) have their pass through every layer planned. A pass may be cut along the layers: then
    `pass_stop_tokens` is where its tokens end and `layers_done` how far it got. A swap changes none of this: what is in
    flight for the sequence arrives, and it goes on behind that.
    """

    __slots__ = (
        "_counter",
        "_joined_step",
        "_planned",
        "cached_tokens",
        "epoch",
        "finish_reason",
        "first_planned_s",
        "first_token_s",
        "id",
        "index",
        "last_token_s",
        "layers_done",
        "output_limit_tokens",
        "pass_stop_tokens",
        "request",
        "row",
        "state",
        "stop_ids",
        "stop_tokens",
        "swaps",
        "tokens",
    )

    def __init__(
        self, request: Request, index: int, output_limit_tokens: int, stop_ids: frozenset[int] = frozenset()
    ) -> None:
        self.id = f"{request.id}.{index}"
        self.request = request
        self.index = index
        self.state = S.WAITING
        self.tokens: array[int] = array("i", request.prompt)
        self.output_limit_tokens = output_limit_tokens
        self.stop_ids = stop_ids
        self.stop_tokens = len(request.prompt) + output_limit_tokens  # with so many it is at its limit
        self.row: int | None = None
        self.epoch = 0  # preemptions by recompute so far; results planned in an older epoch are stale
        self.swaps = 0  # preemptions by swap so far
        self.cached_tokens = 0  # prefix hit of the first admission
        self.pass_stop_tokens: int | None = None
        self.layers_done = 0
        self.finish_reason: FinishReason | None = None
        self.first_planned_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None
        self._planned = 0
        self._counter: StepCounter | None = None
        self._joined_step = 0

    def __repr__(self) -> str:
        return f"<{self.id} {self.state.value} {self.planned_tokens}/{self.total_tokens}>"

    @property
    def objective(self) -> Objective:
        return self.request.objective

    @property
    def arrival_s(self) -> float:
        return self.request.arrival_s

    @property
    def preemptions(self) -> int:
        return self.epoch + self.swaps

    @property
    def total_tokens(self) -> int:
        """Prompt and collected outputs."""
        return len(self.tokens)

    @property
    def output_tokens(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def planned_tokens(self) -> int:
        """Tokens [0, planned) are computed once every plan made so far has run."""
        if self._counter is None:
            return self._planned
        return self._planned + self._counter.steps - self._joined_step

    @property
    def prefill_left_tokens(self) -> int:
        """Known tokens that still need a pass as prompt; 0 for a decoding sequence."""
        return 0 if self._counter is not None else len(self.tokens) - self._planned

    @property
    def planned_outputs(self) -> int:
        """Outputs drawn once every plan has run; for a sequence without known tokens left to compute."""
        return self.planned_tokens - len(self.request.prompt) + 1

    @property
    def is_decoding(self) -> bool:
        return self._counter is not None

    def move(self, to: SeqState) -> None:
        """Change the state. Raises IllegalTransition, and leaves it as it was, if the table has no such move."""
        if to not in NEXT[self.state]:
            legal = ", ".join(sorted(s.value for s in NEXT[self.state])) or "nothing"
            raise IllegalTransition(
                f"sequence {self.id}: {self.state.value} -> {to.value} is not a legal move; "
                f"from here it may go to {legal}"
            )
        self.state = to

    def plan_to(self, tokens: int) -> None:
        """Note that tokens [0, `tokens`) are planned through every layer."""
        assert self._counter is None, f"{self.id} advances with its decode group"
        assert tokens >= self._planned, f"{self.id}: planned {self._planned}, cannot go back to {tokens}"
        self._planned = tokens
        self.pass_stop_tokens, self.layers_done = None, 0

    def plan_part(self, stop_tokens: int, layers_done: int) -> None:
        """Note that the pass up to `stop_tokens` got through the first `layers_done` layers."""
        self.pass_stop_tokens, self.layers_done = stop_tokens, layers_done

    def join(self, counter: StepCounter) -> None:
        """Advance by one token with every step of `counter` from now on."""
        self._counter, self._joined_step = counter, counter.steps

    def leave(self) -> None:
        """Stop advancing with the decode group; the count stays where it is."""
        self._planned, self._counter = self.planned_tokens, None

    def rewind(self) -> None:
        """Forget what was computed: everything is to be computed again. Results in flight become stale."""
        self._planned, self._counter = 0, None
        self.pass_stop_tokens, self.layers_done = None, 0
        self.epoch += 1
