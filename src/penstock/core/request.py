"""What a client asks for: one API call, its objective and its sampling."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING

from penstock.core.errors import InvalidRequest

if TYPE_CHECKING:
    Tokens = array[int]
else:
    Tokens = array  # not subscriptable before CPython 3.12

MAX_SAMPLES = 16
MAX_TOKENS = 2**31 - 1
MAX_STOPS = 16
MAX_STOP_IDS = 1024
MAX_STOP_CHARS = 256
MAX_LOGPROBS = 20
MAX_SALT_CHARS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The limits (SLO) that a request should be served within; None means no limit.

    ttft_s: arrival to first token. tpot_s: mean time per output token after the first.
    deadline_s: arrival to last token. weight: what meeting it is worth, relative to others.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    deadline_s: float | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s", "deadline_s"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < float("inf"):
                raise InvalidRequest(f"{name} is {limit}: a limit is a positive number of seconds", param=name)
        if not 0 < self.weight < float("inf"):
            raise InvalidRequest(f"weight is {self.weight}: give a positive number", param="weight")


NO_OBJECTIVE = Objective()


def _is_text(value: str) -> bool:
    """Half a surrogate pair, which JSON may bring, has no place in UTF-8, in a hash or on the wire."""
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)


def _check(ok: bool, name: str, value: object, wanted: str) -> None:
    if not ok:
        raise InvalidRequest(f"{name} is {value!r}: {wanted}", param=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How output tokens are chosen and when to stop; the names are those of the OpenAI and vLLM clients.

    temperature 0 is greedy. top_k 0 and top_p 1 and min_p 0 switch the filter off. `seed` fixes the samples of this
    request: they never depend on its neighbours. `max_tokens` None: as many as the context has room for.
    `logprobs` N: the N most likely tokens beside each chosen one; `prompt_logprobs` likewise for the prompt.
    `stop` strings end the text before them (kept with `include_stop_str_in_output`); `stop_token_ids` end it too.
    """

    n: int = 1
    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        _check(1 <= self.n <= MAX_SAMPLES, "n", self.n, f"ask for 1 to {MAX_SAMPLES} samples")
        most = MAX_TOKENS if self.max_tokens is None else self.max_tokens
        _check(1 <= most <= MAX_TOKENS, "max_tokens", self.max_tokens, f"give 1 to {MAX_TOKENS}")
        _check(0 <= self.min_tokens <= MAX_TOKENS, "min_tokens", self.min_tokens, f"give 0 to {MAX_TOKENS}")
        _check(len(self.stop_token_ids) <= MAX_STOP_IDS, "stop_token_ids", "a long list", f"at most {MAX_STOP_IDS}")
        _check(all(0 <= t <= MAX_TOKENS for t in self.stop_token_ids), "stop_token_ids", "an id", "give token ids")
        if self.max_tokens is not None:
            _check(
                self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens, f"max_tokens is {self.max_tokens}"
            )
        _check(0.0 <= self.temperature <= 100.0, "temperature", self.temperature, "give a number from 0 to 100")
        _check(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "give a number above 0, at most 1")
        _check(0 <= self.top_k < 2**31, "top_k", self.top_k, "give 0 (off) or a positive number")
        _check(0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "give a number from 0 to 1")
        _check(self.seed is None or -(2**63) <= self.seed < 2**64, "seed", self.seed, "give a 64-bit number")
        _check(len(self.stop) <= MAX_STOPS, "stop", f"{len(self.stop)} strings", f"give at most {MAX_STOPS}")
        _check(all(self.stop), "stop", "an empty string", "it would stop everything; leave it out")
        _check(
            all(len(s) <= MAX_STOP_CHARS for s in self.stop),
            "stop",
            "a long string",
            f"give at most {MAX_STOP_CHARS} characters each",
        )
        _check(all(map(_is_text, self.stop)), "stop", "half a character", "give valid Unicode")
        for name in ("logprobs", "prompt_logprobs"):
            asked = getattr(self, name)
            _check(asked is None or 0 <= asked <= MAX_LOGPROBS, name, asked, f"give 0 to {MAX_LOGPROBS}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One API call, valid once constructed.

    prompt: token ids (`array('i')`, or anything it can be made from). arrival_s: on the engine's clock.
    priority: lower is served first. client: who pays for fairness. program, turn: a session of calls and the place
    of this one in it. category: kind of work, for length prediction. cache_salt: prefixes are shared only within
    one salt. `seed` is drawn by the front end when sampling.seed is None, so that a retry can repeat it.
    """

    id: str
    prompt: Tokens
    sampling: SamplingParams = field(default_factory=SamplingParams)
    arrival_s: float = 0.0
    objective: Objective = NO_OBJECTIVE
    priority: int = 0
    client: str = ""
    program: str | None = None
    turn: int = 0
    category: str = ""
    cache_salt: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.prompt, array) and self.prompt.typecode == "i"):
            object.__setattr__(self, "prompt", _token_ids(self.prompt))
        for name in ("id", "client", "program", "category", "cache_salt"):
            value = getattr(self, name)
            _check(value is None or _is_text(value), name, value, "give valid Unicode")
        _check(bool(self.id), "id", self.id, "give a request id")
        _check(abs(self.priority) <= MAX_TOKENS, "priority", self.priority, "give a 32-bit number")
        _check(len(self.prompt) > 0, "prompt", "empty", "give at least one token")
        _check(isfinite(self.arrival_s), "arrival_s", self.arrival_s, "give a time in seconds")
        salt_ok = len(self.cache_salt) <= MAX_SALT_CHARS and not set(self.cache_salt) & set("@/\\\0")
        _check(salt_ok, "cache_salt", self.cache_salt[:16], f"at most {MAX_SALT_CHARS} characters, none of @ / \\ NUL")


def _token_ids(prompt: Iterable[int]) -> Tokens:
    try:
        return array("i", prompt)
    except (OverflowError, TypeError, ValueError) as wrong:
        raise InvalidRequest(f"prompt: token ids are 32-bit numbers ({wrong})", param="prompt") from None
