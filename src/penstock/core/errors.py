"""One exception tree.

PenstockError
├── UserError (also a ValueError)      something the caller can change; `code` is a stable string for clients
│   ├── InvalidRequest                 a field of a request is wrong
│   │   ├── PromptTooLong              longer than the model's context
│   │   └── NeverFits                  longer than the memory that exists
│   ├── ConfigError                    an option, a file or a name of the configuration
│   │   └── UnknownName                a name that no table has; lists the known ones
│   ├── ModelError                     a model directory
│   │   ├── ModelNotFound
│   │   ├── CorruptModel
│   │   └── UnsupportedModel
│   ├── TraceError                     a trace file (penstock.workload.trace)
│   └── ReplayError                    a replay that cannot run (penstock.workload.records)
├── Overloaded                         a limit of the queue; carries `retry_after_s`
├── EngineDied                         the engine process or its executor is gone
├── IllegalTransition                  our own mistake: a state moved where its table does not allow
└── PolicyViolation                    a policy's answer breaks an invariant of the scheduler; names the policy
"""

from __future__ import annotations

from collections.abc import Iterable

MAX_MESSAGE_CHARS = 900


class PenstockError(Exception):
    """Root of every error that Penstock raises on purpose."""


class UserError(PenstockError, ValueError):
    """What the caller can change. The message says what happened, why, and what to do."""

    code: str = "invalid_value"


class InvalidRequest(UserError):
    """A request's field is wrong. `param` names it as the client wrote it."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLong(InvalidRequest):
    """The prompt leaves no room for one output token within the model's context."""

    code = "context_length_exceeded"


class NeverFits(InvalidRequest):
    """The sequence can never be admitted: its state is larger than the whole pool."""

    code = "never_fits"


class ConfigError(UserError):
    """An option, a configuration file, or a combination of them."""

    code = "invalid_config"


class UnknownName(ConfigError):
    """A name that a table does not have."""

    code = "unknown_name"

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown {what} {name!r}; known: {', '.join(sorted(known))}")


class ModelError(UserError):
    """A model directory that cannot be served.

    The message is one line of printable text, whatever names a damaged or hostile file put into it: it goes to
    terminals, logs and other processes.
    """

    code = "invalid_model"

    def __init__(self, message: str) -> None:
        shown = message if len(message) <= MAX_MESSAGE_CHARS else f"{message[:MAX_MESSAGE_CHARS]}..."
        super().__init__("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in shown))


class ModelNotFound(ModelError):
    """No such directory, or none of the files that make it a model."""

    code = "model_not_found"


class CorruptModel(ModelError):
    """A file of the model is damaged, truncated or contradicts another."""

    code = "corrupt_model"


class UnsupportedModel(ModelError):
    """A valid model of an architecture or with a feature that is not implemented."""

    code = "unsupported_model"


class Overloaded(PenstockError):
    """A bounded queue is full. Nothing was lost: try again after `retry_after_s`."""

    code = "overloaded"

    def __init__(self, message: str, *, reason: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class EngineDied(PenstockError):
    """The engine stopped while requests were in flight; each of them gets this."""

    code = "engine_died"


class IllegalTransition(PenstockError):
    """A state machine was asked for a move that its table does not have."""


class PolicyViolation(PenstockError):
    """A policy answered with something the scheduler must not do."""

    def __init__(self, policy: object, message: str) -> None:
        super().__init__(f"policy {type(policy).__name__}: {message}")
