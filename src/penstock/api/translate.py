"""From a body to the core's requests: the first of two doors. The engine checks every value again.

A `Job` is what the engine runs and how the answer is to be written; nothing after this looks at the body.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from penstock.api.errors import BadBody, UnknownModel
from penstock.api.http import Call
from penstock.api.limits import Limits
from penstock.api.schema import (
    ChatBody,
    ChatMessage,
    CompletionBody,
    Generation,
    check_neutral,
    wrong_type,
)
from penstock.core.errors import InvalidRequest, PromptTooLong
from penstock.core.executor import ModelFacts
from penstock.core.request import NO_OBJECTIVE, Objective, Request, SamplingParams
from penstock.engine.outputs import AsyncEngine
from penstock.text.bad_words import with_bad_word_ids
from penstock.text.chat_template import ChatTemplate
from penstock.text.tokenizer import Tokenizer, check_text

T = TypeVar("T")
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
MAX_NAME_CHARS = 256
MAX_PRIORITY = 2**31
MAX_TOKENS = 2**31  # above every context; larger numbers have no form on the way to an engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One call's work. Choice `prompt * n + sample` answers sample `sample` of request `prompt`.

    echo: the text of each prompt, to be put before its answers. is_scoring: nothing but the prompt is wanted; the one
    token that the engine must make is left out. has_logprobs: tokens come with their probabilities.
    """

    id: str
    model: str
    is_chat: bool
    requests: tuple[Request, ...]
    n: int
    is_stream: bool
    has_usage: bool
    has_running_usage: bool
    has_logprobs: bool
    echo: tuple[str, ...] | None = None
    is_scoring: bool = False
    has_prompt_logprobs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Translator:
    """Everything that turning a body into a job needs.

    root: taken as a name of the model too, since clients that load its tokenizer send what they loaded it from.
    draw_seed: a new seed for a request that brings none.
    """

    engine: AsyncEngine
    tokenizer: Tokenizer
    template: ChatTemplate
    threads: ThreadPoolExecutor
    limits: Limits
    model_names: tuple[str, ...]
    root: str
    has_keys: bool
    draw_seed: Callable[[], int]

    @property
    def facts(self) -> ModelFacts:
        return self.engine.facts  # known once the engine has started, which may be after us

    def check_model(self, name: str | None) -> None:
        """Raise UnknownModel unless it is one of ours, or none was named."""
        if name is not None and name not in self.model_names and name != self.root:
            known = ", ".join(self.model_names)
            raise UnknownModel(
                f"the model {name[:MAX_NAME_CHARS]!r} does not exist here; known: {known}", param="model"
            )

    async def completion(self, body: CompletionBody, call: Call) -> Job:
        self.check_model(body.model)
        check_neutral(body)
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise InvalidRequest("best_of is not supported: leave it out, or give it the value of n", param="best_of")
        is_scoring = body.max_tokens == 0 and bool(body.echo)
        sampling = await self._sampling(
            body,
            max_tokens=1 if is_scoring else 16 if body.max_tokens is None else body.max_tokens,
            logprobs=body.logprobs,
            prompt_logprobs=body.logprobs if body.echo and body.prompt_logprobs is None else body.prompt_logprobs,
        )
        prompts = parse_prompt(bytes(body.prompt))
        if len(prompts) > self.limits.prompts:
            raise InvalidRequest(
                f"the call has {len(prompts)} prompts; at most {self.limits.prompts} are taken", param="prompt"
            )
        ids = await self._ids_of(prompts, body.add_special_tokens is not False)
        job = self._job(body, call, ids, sampling, is_chat=False, has_logprobs=body.logprobs is not None)
        if not body.echo:
            return job
        if job.is_stream and body.logprobs is not None and job.n > 1:
            raise InvalidRequest("n is more than 1: a stream with echo and logprobs takes one sample", param="n")
        echo = tuple(p if isinstance(p, str) else self.tokenizer.decode(p, False) for p in prompts)
        return dataclasses.replace(job, echo=echo, is_scoring=is_scoring)

    async def chat(self, body: ChatBody, call: Call) -> Job:
        self.check_model(body.model)
        check_neutral(body)
        if body.tools and body.tool_choice != "none":
            raise InvalidRequest("tools are not supported: leave them out, or set tool_choice to none", param="tools")
        if body.top_logprobs is not None and not body.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
        limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        sampling = await self._sampling(
            body,
            max_tokens=limit,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            prompt_logprobs=body.prompt_logprobs,
        )
        options = msgspec.to_builtins(body.chat_template_kwargs) if body.chat_template_kwargs else {}
        ids = await self.chat_ids(
            body.messages,
            add_generation_prompt=body.add_generation_prompt is not False,
            add_special_tokens=bool(body.add_special_tokens),
            options=options,
        )
        return self._job(body, call, [ids], sampling, is_chat=True, has_logprobs=bool(body.logprobs))

    async def chat_ids(
        self,
        messages: Sequence[ChatMessage],
        *,
        add_generation_prompt: bool = True,
        add_special_tokens: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The prompt of a chat. The template writes the special tokens, so none are added by default."""
        if not 0 < len(messages) <= self.limits.messages:
            raise InvalidRequest(
                f"the chat has {len(messages)} messages; give 1 to {self.limits.messages}", param="messages"
            )
        shown = [_shown(message) for message in messages]

        def render_and_encode() -> list[int]:
            prompt = self.template.render(shown, add_generation_prompt=add_generation_prompt, options=options)
            self._check_length(prompt)
            return self.tokenizer.encode(prompt, add_special_tokens)

        return await self._off_loop(render_and_encode, sum(_n_chars(message) for message in messages))

    async def text_ids(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        for text in texts:
            self._check_length(text)
        return await self._off_loop(
            lambda: self.tokenizer.encode_batch(texts, add_special_tokens), sum(map(len, texts))
        )

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raise InvalidRequest for an id that the model does not have: it would read or write another's memory."""
        vocab_size = self.facts.vocab_size
        if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
            wrong = next(i for i in ids if not 0 <= i < vocab_size)
            raise InvalidRequest(f"{param} has the id {wrong}; the model has 0 to {vocab_size - 1}", param=param)

    async def _off_loop(self, work: Callable[[], T], n_chars: int) -> T:
        if n_chars <= self.limits.inline_chars:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self.threads, work)

    async def _ids_of(self, prompts: Sequence[str] | Sequence[list[int]], add_special_tokens: bool) -> list[list[int]]:
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if texts:
            return await self.text_ids(texts, add_special_tokens)
        ids = [prompt for prompt in prompts if not isinstance(prompt, str)]
        for prompt in ids:
            self.check_ids(prompt, "prompt")
        return ids

    def _check_length(self, text: str) -> None:
        """Refuse what cannot fit before it is tokenized: that takes seconds for a text of many megabytes."""
        at_least_tokens = len(text) // self.tokenizer.longest_token_chars
        if len(text) > 1 << 20 and at_least_tokens > self.facts.max_model_tokens:
            raise PromptTooLong(
                f"the prompt has {len(text)} characters, which are {at_least_tokens} tokens at least; "
                f"the context of the model has {self.facts.max_model_tokens}",
                param="prompt",
            )

    async def _sampling(
        self, body: Generation, *, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None
    ) -> SamplingParams:
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        for text in stop:
            check_text(text, "stop")
        stop_token_ids = tuple(body.stop_token_ids or ())
        self.check_ids(stop_token_ids, "stop_token_ids")
        self.check_ids(tuple(body.logit_bias or ()), "logit_bias")
        self.check_ids(body.allowed_token_ids or (), "allowed_token_ids")
        for name, asked in (("max_tokens", max_tokens), ("min_tokens", body.min_tokens)):
            if asked is not None and asked >= MAX_TOKENS:
                raise InvalidRequest(f"{name} is far above every context: give less than {MAX_TOKENS}", param=name)
        if body.prompt_logprobs is not None and body.stream:
            raise InvalidRequest(
                "prompt_logprobs cannot be streamed: leave out one of the two", param="prompt_logprobs"
            )
        sampling = SamplingParams(
            n=_or(body.n, 1),
            max_tokens=max_tokens,
            min_tokens=_or(body.min_tokens, 0),
            temperature=_or(body.temperature, 1.0),
            top_p=_or(body.top_p, 1.0),
            top_k=0 if body.top_k in (None, -1) else _or(body.top_k, 0),  # other servers write -1 for off
            min_p=_or(body.min_p, 0.0),
            seed=body.seed,
            stop=stop,
            stop_token_ids=stop_token_ids,
            include_stop_str_in_output=bool(body.include_stop_str_in_output),
            ignore_eos=bool(body.ignore_eos),
            skip_special_tokens=body.skip_special_tokens is not False,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            presence_penalty=_or(body.presence_penalty, 0.0),
            frequency_penalty=_or(body.frequency_penalty, 0.0),
            repetition_penalty=_or(body.repetition_penalty, 1.0),
            logit_bias=tuple((body.logit_bias or {}).items()),
            allowed_token_ids=None if body.allowed_token_ids is None else tuple(body.allowed_token_ids),
            bad_words=tuple(body.bad_words or ()),
        )
        n_chars = 2 * sum(map(len, sampling.bad_words))
        return await self._off_loop(lambda: with_bad_word_ids(sampling, self.tokenizer), n_chars)

    def _job(
        self,
        body: Generation,
        call: Call,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        *,
        is_chat: bool,
        has_logprobs: bool,
    ) -> Job:
        job_id = _job_id("chatcmpl" if is_chat else "cmpl", body.request_id, call)
        objective = _objective(body, call)
        client = _name(body.user, "user") or call.caller
        program = _name(body.session_id, "session_id") or _program(call) or None
        if not -MAX_PRIORITY <= (body.priority or 0) < MAX_PRIORITY:
            raise InvalidRequest(f"priority is {body.priority}: give a 32-bit number", param="priority")
        seed = self.draw_seed() if sampling.seed is None else sampling.seed
        for prompt in prompts:
            self._check_fits(prompt)
        requests = tuple(
            Request(
                id=job_id if len(prompts) == 1 else f"{job_id}-{k}",
                prompt=prompt,  # type: ignore[arg-type]  # made into an array by the record
                sampling=sampling,
                arrival_s=call.arrival_s,
                objective=objective,
                priority=body.priority or 0,
                client=client,
                program=program,
                # with keys, prefixes are shared within a key only: a hit shows in the time to the first token
                cache_salt=body.cache_salt or (call.caller if self.has_keys else ""),
                seed=seed,
            )
            for k, prompt in enumerate(prompts)
        )
        options = body.stream_options
        return Job(
            id=job_id,
            model=body.model or self.model_names[0],
            is_chat=is_chat,
            requests=requests,
            n=sampling.n,
            is_stream=bool(body.stream),
            has_usage=bool(options and options.include_usage),
            has_running_usage=bool(options and options.continuous_usage_stats),
            has_logprobs=has_logprobs,
            has_prompt_logprobs=body.prompt_logprobs is not None,
        )

    def _check_fits(self, prompt: Sequence[int]) -> None:
        if not prompt:
            raise InvalidRequest("the prompt has no tokens: give at least one", param="prompt")
        if len(prompt) >= self.facts.max_model_tokens:
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens and needs room for one more; "
                f"the context of the model has {self.facts.max_model_tokens}",
                param="prompt",
            )


_text = msgspec.json.Decoder(str)
_texts = msgspec.json.Decoder(list[str])
_ids = msgspec.json.Decoder(list[int])
_id_lists = msgspec.json.Decoder(list[list[int]])


def parse_prompt(raw: bytes) -> list[str] | list[list[int]]:
    """The four shapes of a prompt as a list of prompts. Raises BadBody or InvalidRequest."""
    shape = raw[:64].translate(None, b" \t\r\n")[:2]
    try:
        if shape[:1] == b'"':
            prompts: list[str] | list[list[int]] = [_text.decode(raw)]
        elif shape == b'["':
            prompts = _texts.decode(raw)
        elif shape == b"[[":
            prompts = _id_lists.decode(raw)
        else:
            prompts = [_ids.decode(raw)]
    except msgspec.ValidationError as error:
        if shape[:1] != b"[":
            raise BadBody("prompt is no string and no list: give text, or token ids", param="prompt") from None
        raise wrong_type(error, "prompt") from None
    except UnicodeDecodeError:
        raise BadBody("prompt is not UTF-8", param="prompt") from None
    except (msgspec.DecodeError, RecursionError):
        raise BadBody("prompt is not JSON", param="prompt") from None
    if not prompts or not all(prompts):
        raise InvalidRequest("prompt is empty, or one of several is: give at least one token each", param="prompt")
    return prompts


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _shown(message: ChatMessage) -> dict[str, Any]:
    """A message as a template sees it. Raises InvalidRequest for content that is no text."""
    shown: dict[str, Any] = {"content": None, **msgspec.to_builtins(message)}
    if isinstance(message.content, list):
        for part in message.content:
            if part.type != "text" or part.text is None:
                raise InvalidRequest(
                    f"content of type {part.type[:32]!r} is not supported: send text only", param="messages"
                )
    return shown


def _n_chars(message: ChatMessage) -> int:
    if isinstance(message.content, list):
        return sum(len(part.text or "") for part in message.content)
    return len(message.content or "")


def _job_id(kind: str, asked: str | None, call: Call) -> str:
    """Unique even if a client repeats its ids: it names blocks and streams inside the engine."""
    asked = asked or call.headers.get("x-request-id") or ""
    return f"{kind}-{asked}-{call.id[:8]}" if _ID.fullmatch(asked) else f"{kind}-{call.id}"


def _name(value: str | None, param: str) -> str:
    if value is None:
        return ""
    if len(value) > MAX_NAME_CHARS:
        raise InvalidRequest(f"{param} has {len(value)} characters; at most {MAX_NAME_CHARS} are taken", param=param)
    return value


def _program(call: Call) -> str:
    affinity = call.headers.get("x-session-affinity") or call.headers.get("x-correlation-id") or ""
    return _name(affinity, "x-session-affinity")


def _objective(body: Generation, call: Call) -> Objective:
    """The body's limits, and from headers those that it does not have."""
    asked = body.objective
    ttft_s = _limit(asked.ttft_s if asked else None, "x-penstock-ttft-ms", call)
    tpot_s = _limit(asked.tpot_s if asked else None, "x-penstock-tpot-ms", call)
    deadline_s = _limit(asked.deadline_s if asked else None, "x-penstock-deadline-ms", call)
    weight = 1.0 if asked is None or asked.weight is None else asked.weight
    if ttft_s is tpot_s is deadline_s is None and weight == 1.0:
        return NO_OBJECTIVE
    return Objective(ttft_s=ttft_s, tpot_s=tpot_s, deadline_s=deadline_s, weight=weight)


def _limit(limit_s: float | None, header: str, call: Call) -> float | None:
    text = call.headers.get(header)
    if limit_s is not None or text is None:
        return limit_s
    try:
        return float(text) / 1000
    except ValueError:
        raise InvalidRequest(f"the header {header} is no number of milliseconds", param=header) from None


def new_seed() -> int:
    return secrets.randbits(63)
