"""The Python API: `LLM` for a list of prompts, `AsyncLLM` for streams. Names and shapes are those that people know."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from array import array
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from msgspec import structs
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from penstock.core.clock import MonotonicClock
from penstock.core.errors import ConfigError
from penstock.core.executor import TokenLogprobs
from penstock.core.request import Request, SamplingParams
from penstock.core.sequence import FinishReason
from penstock.engine.messages import Finish
from penstock.engine.outputs import OutputDelta, RequestStats
from penstock.engine.text_stream import TextStreams
from penstock.launch import InProcessEngine, make_engine
from penstock.options import EngineOptions, make_options
from penstock.text.bad_words import with_bad_word_ids
from penstock.text.chat_template import ChatTemplate
from penstock.text.tokenizer import Tokenizer

OTHER_NAMES = {"tensor_parallel_size": "tensor_parallel"}  # that people know from elsewhere
Prompt = str | Sequence[int]
Messages = list[dict[str, Any]]


@dataclass(slots=True, kw_only=True)
class CompletionOutput:
    """One sample of a prompt."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    stats: RequestStats | None = None

    def take(self, delta: OutputDelta) -> None:
        """Add what a step brought."""
        self.text += delta.text
        self.token_ids.extend(delta.tokens)
        self.logprobs.extend(delta.logprobs)
        if delta.finish_reason is not None:
            self.finish_reason, self.stop_reason, self.stats = delta.finish_reason, delta.stop, delta.stats


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """All samples of a prompt, in order."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None

    @property
    def is_finished(self) -> bool:
        return all(output.finish_reason is not None for output in self.outputs)

    def take(self, delta: OutputDelta) -> None:
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        self.outputs[delta.index].take(delta)


class _Front:
    """What both APIs do before an engine sees anything: options, tokenizer, requests."""

    def __init__(self, model: str | None, options: dict[str, Any]) -> None:
        if model is not None:
            options = {**options, "model": str(model)}
        options = {OTHER_NAMES.get(name, name): value for name, value in options.items()}
        seed = options.pop("seed", None)
        self.options = make_options(options)
        self.tokenizer = Tokenizer.from_path(self.options.model_path)
        self._seeds = itertools.count(secrets.randbits(48) if seed is None else seed * 1_000_003)
        self._ids = itertools.count()
        self._clock = MonotonicClock()

    def request(self, prompt: Prompt, sampling: SamplingParams) -> Request:
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        seed = sampling.seed if sampling.seed is not None else next(self._seeds)
        return Request(
            id=f"r{next(self._ids)}",
            prompt=array("i", tokens),
            sampling=with_bad_word_ids(sampling, self.tokenizer),
            arrival_s=self._clock.now_s(),
            seed=seed % 2**63,
        )

    def render(self, messages: Messages) -> list[int]:
        text = ChatTemplate.of(self.tokenizer).render(messages)
        return self.tokenizer.encode(text, add_special_tokens=False)


def _empty_output(request: Request, prompt: Prompt) -> RequestOutput:
    return RequestOutput(
        request_id=request.id,
        prompt=prompt if isinstance(prompt, str) else None,
        prompt_token_ids=request.prompt.tolist(),
        outputs=[CompletionOutput(index=k) for k in range(request.sampling.n)],
    )


def unbounded(options: EngineOptions) -> EngineOptions:
    """The same options without limits of the queue: a list of prompts that was handed over is not overload."""
    return structs.replace(options, max_queued_requests=2**62, max_queued_tokens=2**62)


class LLM:
    """A model in this process: `LLM("path/to/model").generate(prompts, SamplingParams(...))`.

    options: fields of `EngineOptions` (dtype, kv_memory, policy, ...), and `seed` for repeatable samples.
    Raises ModelError or ConfigError.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        self._front = _Front(model, options)
        self._engine = make_engine(unbounded(self._front.options))

    @property
    def tokenizer(self) -> Tokenizer:
        return self._front.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete prompts (text, or token ids), in the order given.

        use_tqdm: show a progress bar (the name that other engines use). Raises InvalidRequest for the first prompt
        that cannot be served; nothing was run then.
        """
        items = _as_prompts(prompts)
        params = _as_params(sampling_params, len(items))
        requests = [self._front.request(p, s) for p, s in zip(items, params, strict=True)]
        return self._run(requests, [_empty_output(r, p) for r, p in zip(requests, items, strict=True)], use_tqdm)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several, through the model's chat template."""
        is_one = bool(messages) and isinstance(messages[0], dict)
        conversations = cast("Sequence[Messages]", [messages] if is_one else messages)
        rendered = [self._front.render(conversation) for conversation in conversations]
        return self.generate(rendered, sampling_params, use_tqdm=use_tqdm)

    def close(self) -> None:
        """Give memory and threads back."""
        self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, requests: list[Request], outputs: list[RequestOutput], shows_progress: bool) -> list[RequestOutput]:
        texts = TextStreams(self._front.tokenizer)
        by_id = {output.request_id: output for output in outputs}
        try:
            for request in requests:
                texts.open(request)
                self._engine.add(request, age_s=0.0)
            with _progress(len(requests), shows_progress) as advance:
                while self._engine.has_work:
                    self._step(texts, by_id, advance)
        finally:
            for request in requests:
                self._engine.abort(request.id)  # those that did not end: an error or Ctrl-C came between
            self._engine.take_updates()
        return outputs

    def _step(self, texts: TextStreams, by_id: dict[str, RequestOutput], advance: _Advance) -> None:
        deltas, finishes = texts.process(self._engine.step())
        for finish in finishes:
            self._finish(finish)
        if finishes:
            deltas += texts.process(self._engine.take_updates())[0]
        for request_id, delta in deltas:
            output = by_id[request_id]
            output.take(delta)
            if delta.finish_reason is not None and output.is_finished:
                advance(sum(len(sample.token_ids) for sample in output.outputs))

    def _finish(self, finish: Finish) -> None:
        self._engine.finish(finish.request_id, finish.index, finish.output_tokens)


class AsyncLLM:
    """A model in a thread of this process, for asyncio programs: `async for output in llm.stream(prompt, params)`.

    Use it as an async context manager. Raises as `LLM`.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        self._front = _Front(model, options)
        self._engine: InProcessEngine | None = None

    async def __aenter__(self) -> AsyncLLM:
        engine = await asyncio.to_thread(make_engine, self._front.options)
        self._engine = InProcessEngine(engine, self._front.tokenizer)
        await self._engine.client.wait_ready()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._engine is not None:
            await self._engine.close()

    async def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> AsyncIterator[OutputDelta]:
        """What is new, step by step. Leaving the loop early ends the request."""
        if self._engine is None:
            raise ConfigError("this AsyncLLM is not running: use `async with AsyncLLM(...) as llm`")
        request = self._front.request(prompt, sampling_params or SamplingParams())
        deltas = self._engine.client.generate(request)
        try:
            async for step in deltas:
                for delta in step:
                    yield delta
        finally:
            await deltas.aclose()

    async def chat(
        self, messages: Messages, sampling_params: SamplingParams | None = None
    ) -> AsyncIterator[OutputDelta]:
        """As `stream`, for a conversation."""
        async for delta in self.stream(self._front.render(messages), sampling_params):
            yield delta


class _Advance:
    """Tells a progress bar of finished requests."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._tokens = 0
        self._task = progress.add_task("Generating", total=total, rate="") if progress is not None else None

    def __call__(self, tokens: int) -> None:
        self._tokens += tokens
        if self._progress is None or self._task is None:
            return
        elapsed_s = self._progress.tasks[0].elapsed or 0.0
        rate = f"{self._tokens / elapsed_s:,.0f} tokens/s" if elapsed_s else ""
        self._progress.update(self._task, advance=1, rate=rate)


@contextlib.contextmanager
def _progress(total: int, is_shown: bool) -> Iterator[_Advance]:
    if not is_shown:
        yield _Advance(None, total)
        return
    rate = TextColumn("{task.fields[rate]}")
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), rate
    ) as bar:
        yield _Advance(bar, total)


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts, whether one was given or several."""
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int)):
        return [cast(Prompt, prompts)]
    return list(cast("Sequence[Prompt]", prompts))


def _as_params(params: SamplingParams | Sequence[SamplingParams] | None, n: int) -> list[SamplingParams]:
    if params is None:
        params = SamplingParams()
    if isinstance(params, SamplingParams):
        return [params] * n
    if len(params) != n:
        raise ConfigError(f"{len(params)} sampling parameters for {n} prompts: give one for all, or one each")
    return list(params)
