"""The protocol between decisions and whatever executes them: torch here, a table of step times in the simulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.core.plan import DecodeGroup, Leap, Plan


class StateKind(Enum):
    """How the state of a layer grows with its sequence."""

    PAGED = "paged"  # every token's keys and values
    WINDOWED = "windowed"  # first tokens (sinks) and the last ones
    RECURRENT = "recurrent"  # constant size


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpec:
    """Layers whose state has one shape share block tables: a state group.

    block_tokens: token slots of a block. block_bytes: of one block over all `layers`. The rest is for WINDOWED only:
    a token reads the first `sink_tokens` tokens and the last `window_tokens`, itself included; a step takes at most
    `chunk_tokens` of one sequence, whose keys all lie there at once.
    """

    name: str
    kind: StateKind
    layers: tuple[int, ...]
    block_tokens: int
    block_bytes: int
    window_tokens: int | None = None
    sink_tokens: int = 0
    chunk_tokens: int | None = None

    def __post_init__(self) -> None:
        is_windowed = self.kind is StateKind.WINDOWED  # wrong values may come over the wire: no assertions
        if is_windowed != (self.window_tokens is not None):
            raise ValueError(f"state {self.name!r}: windowed state, and no other, has a window")
        if is_windowed != (self.chunk_tokens is not None):
            raise ValueError(f"state {self.name!r}: windowed state, and no other, bounds chunks")

    @property
    def sink_blocks(self) -> int:
        return -(-self.sink_tokens // self.block_tokens)

    def blocks_for(self, tokens: int) -> int:
        """Blocks of a sequence that was computed up to `tokens` tokens, while its last chunk is."""
        return self._blocks(tokens, self.chunk_tokens or 1)

    def decoding_blocks_for(self, tokens: int) -> int:
        """The same, when its last chunk was one token."""
        return self._blocks(tokens, 1)

    def _blocks(self, tokens: int, chunk_tokens: int) -> int:
        whole = -(-tokens // self.block_tokens)
        if self.window_tokens is None:
            return whole
        # the keys that the chunk reads and writes may begin and end anywhere in a block
        recent = -(-(self.window_tokens - 1 + chunk_tokens) // self.block_tokens) + 1
        return min(whole, self.sink_blocks + recent)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What decisions need to know of a model; nothing of it is a tensor.

    kernels: (op, what computes it), for people to look at: no decision reads them.
    """

    name: str
    n_layers: int
    vocab_size: int
    max_model_tokens: int
    stop_token_ids: frozenset[int]
    states: tuple[StateSpec, ...]
    weight_bytes: int
    kernels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities (natural) at one position, under the model's distribution before any sampling filter.

    top: (token id, logprob), most likely first. rank: 1 + number of tokens more likely than the chosen one.
    """

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a step produced. tokens: int32 [samples], in the order that `Plan` states; one per sampling row.

    logprobs: by index into `tokens`, for the rows that asked. prompt_logprobs: by index into `plan.chunks`; entry k
    belongs to the token after position start + k (so the last chunk of a prompt has one entry less than tokens).
    device_s: time that the device worked on it. moved: (plan id, seconds of copying) of each plan whose moves between
    the tiers were found complete since the last result; it may be an earlier plan, and need not be this one.
    keys_read: keys of one full-attention layer that the decode rows read; keys_saved: those that they would have read
    besides, had they not read common prefixes together.
    """

    tokens: npt.NDArray[np.int32]
    logprobs: Mapping[int, TokenLogprobs] = {}
    prompt_logprobs: Mapping[int, tuple[TokenLogprobs, ...]] = {}
    device_s: float = 0.0
    moved: tuple[tuple[int, float], ...] = ()
    keys_read: int = 0
    keys_saved: int = 0


@dataclass(frozen=True, slots=True)
class DeviceSpan:
    """When the device worked on a step, on the clock of `time.monotonic`. how: what ran, in words for people."""

    start_s: float
    stop_s: float
    how: str


@dataclass(frozen=True, slots=True)
class Ticket:
    """A submitted plan whose result was not collected yet."""

    plan_id: int


class Executor(Protocol):
    """Runs plans strictly in the order of `submit`: what a later plan does to rows and blocks happens after what an
    earlier one does. So memory that a plan stops using may be given to the next plan at once.
    """

    @property
    def facts(self) -> ModelFacts: ...

    @property
    def max_rows(self) -> int:
        """Rows 0 .. max_rows - 1 exist."""
        ...

    def allocate(self, n_blocks: tuple[int, ...], n_host_blocks: tuple[int, ...] = ()) -> None:
        """Make the pools, one number of blocks per state group, before the first plan; and those of the host tier, if
        there is one.
        """
        ...

    def submit(self, plan: Plan) -> Ticket:
        """Take a plan without waiting for its result."""
        ...

    def collect(self, ticket: Ticket) -> StepResult:
        """Wait for the result of the oldest plan that was not collected. Raises whatever broke the step."""
        ...

    def close(self) -> None:
        """Give everything back. Results that were not collected are lost."""
        ...


@runtime_checkable
class Preparing(Protocol):
    """An executor that can get ready for later steps while there is nothing to do."""

    def prepare(self) -> bool:
        """Do a little of it, some tens of milliseconds at most, with no plan out; whether there is more to do."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Foresight:
    """What comes of planning a decode group so many times more, collecting a result after each plan as ever.

    ends_s [steps]: the engine's clock after each. device_s [steps]: of the results that are collected, those first that
    are out already. tokens: int32 [rows], the samples of every one of these results.
    """

    ends_s: npt.NDArray[np.float64]
    device_s: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int32]


@runtime_checkable
class Foreseeing(Protocol):
    """An executor that knows what steps of one decode group will bring before they were planned."""

    def foresee(self, group: DecodeGroup, steps: int) -> Foresight | None:
        """At most `steps` steps ahead; None if the next one is not known."""
        ...

    def leap(self, leap: Leap) -> None:
        """These steps were planned, and as many results collected as steps were planned. It moves the clock."""
        ...
