"""What happened to each request of a replay, and the file that keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from penstock.core.errors import UserError
from penstock.core.request import NO_OBJECTIVE, Objective
from penstock.workload.trace import TraceRequest

FORMAT_VERSION = 1


class ReplayError(UserError):
    """A replay cannot run, or its result file cannot be read."""

    code = "invalid_replay"


class Outcome(StrEnum):
    """How a request ended; every request of the trace ends in exactly one of these."""

    OK = "ok"  # the whole stream arrived
    REFUSED = "refused"  # the server said that it is busy: 429 or 503
    ERROR = "error"  # any other HTTP status, or an error event within the stream
    CUT = "cut"  # the connection failed, or the stream stopped before its end
    TIMED_OUT = "timed_out"  # the client gave up: a request's limit, or the replay's
    NOT_SENT = "not_sent"  # the replay's time was over before the request's turn


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request as the client saw it; all times in seconds since the replay began.

    index: place in the trace. scheduled_s: when it was due. token_s: one time per event that carried output (a server
    may put several tokens in one event). has_gaps: token_s has every one of these, not only the first and the last.
    input_tokens, output_tokens: what the trace asked for; prompt_tokens,
    completion_tokens, cached_tokens: what the server's usage says. queue_ms: the server's own queue time.
    """

    index: int
    scheduled_s: float
    input_tokens: int
    output_tokens: int
    outcome: Outcome
    sent_s: float | None = None
    end_s: float | None = None
    token_s: tuple[float, ...] = ()
    has_gaps: bool = True
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    queue_ms: float | None = None
    error: str | None = None
    retry_after_s: float | None = None
    client: str = ""
    session: str | None = None
    turn: int = 0
    category: str = ""
    objective: Objective = NO_OBJECTIVE

    @property
    def is_ok(self) -> bool:
        return self.outcome is Outcome.OK

    @property
    def n_tokens(self) -> int:
        """Output tokens that arrived: the server's count, or the events where it gave none."""
        return self.completion_tokens if self.completion_tokens is not None else len(self.token_s)

    @property
    def ttft_s(self) -> float | None:
        return self.token_s[0] - self.sent_s if self.token_s and self.sent_s is not None else None

    @property
    def tpot_s(self) -> float | None:
        """None for a single token: it has no gap."""
        return (
            (self.token_s[-1] - self.token_s[0]) / (self.n_tokens - 1) if self.token_s and self.n_tokens > 1 else None
        )

    @property
    def e2e_s(self) -> float | None:
        return self.token_s[-1] - self.sent_s if self.token_s and self.sent_s is not None else None

    @property
    def lag_s(self) -> float | None:
        """How late the client itself was."""
        return self.sent_s - self.scheduled_s if self.sent_s is not None else None

    def keeps(self, objective: Objective) -> bool:
        """Whether it was answered in full and within every limit that the objective has."""
        if not self.is_ok or self.ttft_s is None or self.e2e_s is None:
            return False
        taken = ((self.ttft_s, objective.ttft_s), (self.tpot_s, objective.tpot_s), (self.e2e_s, objective.deadline_s))
        return all(limit_s is None or taken_s is None or taken_s <= limit_s for taken_s, limit_s in taken)


def identity(request: TraceRequest) -> dict[str, Any]:
    """The fields of a record that the trace alone decides."""
    return {
        "input_tokens": request.input_tokens,
        "output_tokens": request.output_tokens,
        "client": request.client,
        "session": request.session,
        "turn": request.turn,
        "category": request.category,
        "objective": request.objective,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHeader:
    """What was replayed against what. seed: that of the prompts. pacing: open (fixed times) or sessions (closed).

    is_whole: nobody interrupted it.
    """

    trace: str
    url: str
    model: str
    label: str = ""
    pacing: str = "open"
    seed: int = 0
    started_utc: str = ""
    trace_seed: int | None = None
    trace_parameters: dict[str, Any] = field(default_factory=dict)
    trace_steps: tuple[str, ...] = ()
    is_whole: bool = True
    penstock_replay: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished replay: one record per request of the trace, in the trace's order."""

    header: RunHeader
    records: tuple[RequestRecord, ...]

    @property
    def name(self) -> str:
        return self.header.label or self.header.model


def read_run(path: Path) -> Run:
    """Read a result file. Raises ReplayError that names the file and what is wrong with it."""
    try:
        run = msgspec.json.decode(path.read_bytes(), type=Run)
    except OSError as error:
        raise ReplayError(f"cannot read the result {path}: {error.strerror}. Check the path.") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise ReplayError(f"{path} is not a result of `penstock replay`: {error}") from error
    if run.header.penstock_replay != FORMAT_VERSION:
        raise ReplayError(f"{path} has version {run.header.penstock_replay}, this release reads {FORMAT_VERSION}")
    return run
