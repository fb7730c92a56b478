"""What a client asks for: one API call, its objective and its sampling."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

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
MAX_NAME_CHARS = 256
MAX_BIASED_IDS = 1024
MAX_ALLOWED_IDS = 2**18  # the size of the largest vocabularies
MAX_BAD_WORDS = 256
MAX_BAD_WORD_CHARS = 256
MAX_BAD_SEQUENCES = 2 * MAX_BAD_WORDS  # with and without a space before it
MAX_BAD_SEQUENCE_TOKENS = 32


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


def _check_ids(ids: Sequence[int], name: str) -> None:
    ok = not ids or (set(map(type, ids)) <= {int} and min(ids) >= 0 and max(ids) <= MAX_TOKENS)
    _check(ok, name, "an id", "give token ids")


_TUPLES = ("stop", "stop_token_ids", "logit_bias", "allowed_token_ids", "bad_words", "bad_word_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How output tokens are chosen and when to stop; the names are those of the OpenAI and vLLM clients.

    temperature 0 is greedy. top_k 0 and top_p 1 and min_p 0 switch the filter off. `seed` fixes the samples of this
    request: they do not depend on its neighbours, but for the rounding of kernels by batch size. `max_tokens` None: as
    many as the context has room for; less where the whole pool could not hold them.
    `logprobs` N: the N most likely tokens beside each chosen one; `prompt_logprobs` likewise for the prompt.
    `stop` strings end the text before them (kept with `include_stop_str_in_output`); `stop_token_ids` end it too.

    What changes the logits, in the order in which it is applied (before temperature and filters; logprobs stay those
    of the model):
    1. `allowed_token_ids`: no other token is ever drawn. None allows all.
    2. `bad_words` are never put out, unless nothing else is left: a token that would complete one is held back. The
       front end makes `bad_word_ids` of them, which is what an engine takes.
    3. `min_tokens` holds back what would end the text.
    4. `logit_bias`: pairs of (token id, number added to its logit); a mapping is taken too.
    5. `repetition_penalty`: the logit of a token of prompt or outputs is divided by it if positive, else multiplied.
    6. `frequency_penalty` is subtracted for every time that a token was put out, `presence_penalty` once.
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
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    bad_word_ids: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        self._make_tuples()
        self._check_length_and_filters()
        self._check_stops()
        self._check_logit_changes()
        for name in ("logprobs", "prompt_logprobs"):
            asked = getattr(self, name)
            _check(asked is None or 0 <= asked <= MAX_LOGPROBS, name, asked, f"give 0 to {MAX_LOGPROBS}")

    def _make_tuples(self) -> None:
        """What people also write (a list, a mapping, None) becomes what can be hashed and compared."""
        values: dict[str, Any] = {name: getattr(self, name) for name in _TUPLES}
        for name, value in values.items():
            if value is None and name != "allowed_token_ids":
                object.__setattr__(self, name, ())
            elif isinstance(value, Mapping):
                object.__setattr__(self, name, tuple(value.items()))
            elif isinstance(value, list):
                object.__setattr__(self, name, tuple(tuple(v) if isinstance(v, list) else v for v in value))
            _check(not isinstance(value, str), name, "a string", "give a list")

    def _check_length_and_filters(self) -> None:
        _check(1 <= self.n <= MAX_SAMPLES, "n", self.n, f"ask for 1 to {MAX_SAMPLES} samples")
        most = MAX_TOKENS if self.max_tokens is None else self.max_tokens
        _check(1 <= most <= MAX_TOKENS, "max_tokens", self.max_tokens, f"give 1 to {MAX_TOKENS}")
        _check(0 <= self.min_tokens <= MAX_TOKENS, "min_tokens", self.min_tokens, f"give 0 to {MAX_TOKENS}")
        if self.max_tokens is not None:
            _check(
                self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens, f"max_tokens is {self.max_tokens}"
            )
        _check(0.0 <= self.temperature <= 100.0, "temperature", self.temperature, "give a number from 0 to 100")
        _check(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "give a number above 0, at most 1")
        _check(0 <= self.top_k < 2**31, "top_k", self.top_k, "give 0 (off) or a positive number")
        _check(0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "give a number from 0 to 1")
        _check(self.seed is None or -(2**63) <= self.seed < 2**64, "seed", self.seed, "give a 64-bit number")

    def _check_stops(self) -> None:
        _check(len(self.stop_token_ids) <= MAX_STOP_IDS, "stop_token_ids", "a long list", f"at most {MAX_STOP_IDS}")
        _check_ids(self.stop_token_ids, "stop_token_ids")
        _check(len(self.stop) <= MAX_STOPS, "stop", f"{len(self.stop)} strings", f"give at most {MAX_STOPS}")
        _check(all(self.stop), "stop", "an empty string", "it would stop everything; leave it out")
        _check(
            all(len(s) <= MAX_STOP_CHARS for s in self.stop),
            "stop",
            "a long string",
            f"give at most {MAX_STOP_CHARS} characters each",
        )
        _check(all(map(_is_text, self.stop)), "stop", "half a character", "give valid Unicode")

    def _check_logit_changes(self) -> None:
        for name in ("presence_penalty", "frequency_penalty"):
            penalty = getattr(self, name)
            _check(-2.0 <= penalty <= 2.0, name, penalty, "give a number from -2 to 2")
        repetition = self.repetition_penalty
        _check(0.01 <= repetition <= 100.0, "repetition_penalty", repetition, "give a number from 0.01 to 100")
        if self.logit_bias:
            self._check_bias()
        if self.allowed_token_ids is not None:
            self._check_allowed(self.allowed_token_ids)
        if self.bad_words or self.bad_word_ids:
            self._check_bad_words()

    def _check_bias(self) -> None:
        name = "logit_bias"
        ids = [token for token, _ in self.logit_bias]
        _check(len(ids) <= MAX_BIASED_IDS, name, f"{len(ids)} entries", f"give at most {MAX_BIASED_IDS}")
        _check_ids(ids, name)
        _check(len(set(ids)) == len(ids), name, "an id twice", "give each once")
        object.__setattr__(self, "logit_bias", tuple(sorted(self.logit_bias)))
        wrong = next((bias for _, bias in self.logit_bias if not -100.0 <= bias <= 100.0), None)
        _check(wrong is None, name, wrong, "give numbers from -100 to 100")

    def _check_allowed(self, ids: tuple[int, ...]) -> None:
        name = "allowed_token_ids"
        _check(len(ids) > 0, name, "empty", "it would allow nothing; leave it out")
        _check(len(ids) <= MAX_ALLOWED_IDS, name, "a long list", f"at most {MAX_ALLOWED_IDS}")
        _check_ids(ids, name)

    def _check_bad_words(self) -> None:
        words, sequences = self.bad_words, self.bad_word_ids
        _check(len(words) <= MAX_BAD_WORDS, "bad_words", f"{len(words)} words", f"give at most {MAX_BAD_WORDS}")
        _check(all(map(str.strip, words)), "bad_words", "an empty word", "it would forbid everything; leave it out")
        is_short = all(len(word) <= MAX_BAD_WORD_CHARS for word in words)
        _check(is_short, "bad_words", "a long word", f"give at most {MAX_BAD_WORD_CHARS} characters each")
        _check(all(map(_is_text, words)), "bad_words", "half a character", "give valid Unicode")
        name = "bad_word_ids"
        _check(len(sequences) <= MAX_BAD_SEQUENCES, name, "a long list", f"at most {MAX_BAD_SEQUENCES}")
        is_short = all(0 < len(ids) <= MAX_BAD_SEQUENCE_TOKENS for ids in sequences)
        _check(is_short, name, "an empty or a long sequence", f"give 1 to {MAX_BAD_SEQUENCE_TOKENS} tokens each")
        for ids in sequences:
            _check_ids(ids, name)


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
            _check(len(value or "") <= MAX_NAME_CHARS, name, "a long text", f"at most {MAX_NAME_CHARS} characters")
        _check(bool(self.id), "id", self.id, "give a request id")
        _check(abs(self.priority) <= MAX_TOKENS, "priority", self.priority, "give a 32-bit number")
        _check(0 <= self.turn <= MAX_TOKENS, "turn", self.turn, f"give 0 to {MAX_TOKENS}")
        _check(-(2**63) <= self.seed < 2**64, "seed", self.seed, "give a 64-bit number")
        _check(len(self.prompt) > 0, "prompt", "empty", "give at least one token")
        _check(isfinite(self.arrival_s), "arrival_s", self.arrival_s, "give a time in seconds")
        salt_ok = len(self.cache_salt) <= MAX_SALT_CHARS and not set(self.cache_salt) & set("@/\\\0")
        _check(salt_ok, "cache_salt", self.cache_salt[:16], f"at most {MAX_SALT_CHARS} characters, none of @ / \\ NUL")


def _token_ids(prompt: Iterable[int]) -> Tokens:
    try:
        return array("i", prompt)
    except (OverflowError, TypeError, ValueError) as wrong:
        raise InvalidRequest(f"prompt: token ids are 32-bit numbers ({wrong})", param="prompt") from None
