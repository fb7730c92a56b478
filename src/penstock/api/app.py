"""The application: a table of routes over raw ASGI. Everything it needs is handed in; it starts nothing by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from prometheus_client import CONTENT_TYPE_LATEST

import penstock
from penstock.api.auth import OPEN_ROUTES, Gate, check_origin
from penstock.api.errors import Draining, NotAllowed, NotFound, NotReady, Starting, refusal_of
from penstock.api.http import Call, ClientGone, Receive, Response, Scope, Send, json_response
from penstock.api.limits import Bodies, Limits, check_headers
from penstock.api.logprobs import TokenNames
from penstock.api.metrics import Metrics
from penstock.api.openai import Generator
from penstock.api.schema import DetokenizeBody, TokenizeBody, decode_body
from penstock.api.translate import Translator, new_seed
from penstock.core.clock import Clock, MonotonicClock
from penstock.core.errors import ConfigError, InvalidRequest
from penstock.engine.outputs import AsyncEngine
from penstock.text.chat_template import ChatTemplate
from penstock.text.tokenizer import Tokenizer

Handler = Callable[[Call], Awaitable[Response | None]]
MODEL_PREFIX = "/v1/models/"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
WITHOUT_ENGINE = frozenset({"/health", "/live", "/ready", "/version", "/metrics"})  # answered while it starts


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiConfig:
    """How an engine is shown to the outside.

    model_names: what clients may call the model; the first is the one that is listed. root: the model's directory or
    repository, from which bench clients load a tokenizer. api_keys: none leaves everything open. open_routes: those
    that need no key. has_vllm_names: /metrics shows vLLM's names too. threads: for long texts. clock: the engine's.
    """

    model_names: tuple[str, ...]
    root: str = ""
    api_keys: tuple[str, ...] = ()
    open_routes: frozenset[str] = OPEN_ROUTES
    has_vllm_names: bool = False
    threads: int = 2
    limits: Limits = field(default_factory=Limits)
    clock: Clock = field(default_factory=MonotonicClock)
    wall_s: Callable[[], float] = time.time
    draw_seed: Callable[[], int] = new_seed

    def __post_init__(self) -> None:
        if not self.model_names or not all(self.model_names):
            raise ConfigError("the served model has no name: give at least one")
        if self.threads < 1:
            raise ConfigError(f"threads is {self.threads}: give 1 or more")


class App:
    """An ASGI application. The engine may still be starting; close it after the application, not before."""

    def __init__(self, engine: AsyncEngine, tokenizer: Tokenizer, config: ApiConfig) -> None:
        self.engine = engine
        self.metrics = Metrics(
            engine, config.model_names[0], lambda: self.has_started, has_vllm_names=config.has_vllm_names
        )
        self.is_draining = False
        self._has_started = False
        self._tokenizer = tokenizer
        self._config = config
        self._bodies = Bodies(config.limits)
        self._gate = Gate(config.api_keys, config.open_routes)
        self._created_s = int(config.wall_s())
        self._names = TokenNames(tokenizer)
        self._threads = ThreadPoolExecutor(config.threads, thread_name_prefix="penstock-text")
        self._translator = Translator(
            engine=engine,
            tokenizer=tokenizer,
            template=ChatTemplate.of(tokenizer),
            threads=self._threads,
            limits=config.limits,
            model_names=config.model_names,
            root=config.root or config.model_names[0],
            has_keys=self._gate.is_closed,
            draw_seed=config.draw_seed,
        )
        generator = Generator(
            engine=engine,
            translator=self._translator,
            names=self._names,
            limits=config.limits,
            bodies=self._bodies,
            metrics=self.metrics,
            clock=config.clock,
            wall_s=config.wall_s,
        )
        self.routes = self._route_table(generator)

    def _route_table(self, generator: Generator) -> Mapping[str, Mapping[str, Handler]]:
        """By path, then by method. A path that ends in a slash stands for everything below it."""
        return {
            CHAT: {"POST": generator.chat},
            COMPLETIONS: {"POST": generator.completions},
            "/v1/models": {"GET": self._models},
            MODEL_PREFIX: {"GET": self._model},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/tokenizer_info": {"GET": self._tokenizer_info},
            "/health": {"GET": self._ready},
            "/live": {"GET": self._live},
            "/ready": {"GET": self._ready},
            "/version": {"GET": self._version},
            "/load": {"GET": self._load},
            "/metrics": {"GET": self._metrics},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            call = Call(scope, receive, send, self._config.clock.now_s())
            await self._serve(call)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._lifespan(receive, send)

    @property
    def has_keys(self) -> bool:
        return self._gate.is_closed

    @property
    def has_started(self) -> bool:
        """The engine was ready once: the model's facts are known from then on."""
        self._has_started = self._has_started or self.engine.is_ready
        return self._has_started

    async def drain(self, timeout_s: float) -> None:
        """Take no new generation; return when what runs has ended, or was aborted after `timeout_s`."""
        self.is_draining = True
        await self.engine.drain(timeout_s)

    def close(self) -> None:
        """Give the threads back. The server does it at its end; whoever runs the application otherwise calls it."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        try:
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        except asyncio.CancelledError:
            pass  # an end without ceremony: uvicorn would log the cancellation as a fault of ours
        finally:
            self.close()

    async def _serve(self, call: Call) -> None:
        """Every exception of a call ends here, and only that call."""
        route, status = "unknown", 200
        try:
            check_headers(call.scope["headers"], self._config.limits)
            check_origin(call)
            call.caller = self._gate.admit(call)
            route, handler = self._find(call)
            response = await handler(call)
            if response is not None:
                status = response.status
                await call.answer(response)
        except ClientGone:
            self.metrics.gone += 1
            status = 499  # nobody reads it; the name that proxies log
        except Exception as error:  # noqa: BLE001 - the one place: the writer below decides what is said of it
            refusal = self.metrics.refused(refusal_of(error), error, call.id)
            status = refusal.status
            await call.answer(refusal.response)
        self.metrics.responses[route, str(status)] += 1

    def _find(self, call: Call) -> tuple[str, Handler]:
        route = call.path
        if route not in self.routes and route.startswith(MODEL_PREFIX):
            route = MODEL_PREFIX
        methods = self.routes.get(route)
        if methods is None:
            raise NotFound("there is no such route here; see the documentation for those that are")
        method = "GET" if call.method == "HEAD" else call.method
        if method not in methods:
            raise NotAllowed(f"{route} takes {', '.join(methods)} only", methods)
        if route not in WITHOUT_ENGINE and not self.has_started:
            raise Starting("the engine is starting; ask /ready when it is done")
        if self.is_draining and route in (CHAT, COMPLETIONS):
            raise Draining("the server is about to stop and takes no new requests: send it to another one")
        return route, methods[method]

    # ---- models and tokens

    async def _models(self, call: Call) -> Response:
        return json_response({"object": "list", "data": [self._card(name) for name in self._config.model_names]})

    async def _model(self, call: Call) -> Response:
        name = call.path.removeprefix(MODEL_PREFIX)
        self._translator.check_model(name)
        return json_response(self._card(name))

    def _card(self, name: str) -> dict[str, object]:
        return {
            "id": name,
            "object": "model",
            "created": self._created_s,
            "owned_by": "penstock",
            "root": self._config.root or self._config.model_names[0],
            "parent": None,
            "max_model_len": self.engine.facts.max_model_tokens,
        }

    async def _tokenize(self, call: Call) -> Response:
        body, call.extra_headers = decode_body(await self._bodies.read(call), TokenizeBody)
        self._translator.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequest("give either prompt or messages", param="prompt")
        if body.messages is not None:
            ids = await self._translator.chat_ids(
                body.messages,
                add_generation_prompt=body.add_generation_prompt is not False,
                add_special_tokens=bool(body.add_special_tokens),
            )
        else:
            (ids,) = await self._translator.text_ids([body.prompt or ""], body.add_special_tokens is not False)
        names = [self._tokenizer.id_to_token(i) for i in ids] if body.return_token_strs else None
        max_model_len = self.engine.facts.max_model_tokens
        return json_response({"count": len(ids), "max_model_len": max_model_len, "tokens": ids, "token_strs": names})

    async def _detokenize(self, call: Call) -> Response:
        body, call.extra_headers = decode_body(await self._bodies.read(call), DetokenizeBody)
        self._translator.check_model(body.model)
        self._translator.check_ids(body.tokens, "tokens")
        return json_response({"prompt": self._tokenizer.decode(body.tokens, skip_special_tokens=False)})

    async def _tokenizer_info(self, call: Call) -> Response:
        special = self._tokenizer.special
        return json_response(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": special.bos,
                "eos_token": special.eos,
                "pad_token": special.pad,
                "unk_token": special.unk,
                "vocab_size": self._tokenizer.vocab_size,
                "model_max_length": self.engine.facts.max_model_tokens,
                "chat_template": self._tokenizer.chat_template,
            }
        )

    # ---- operation

    async def _live(self, call: Call) -> Response:
        return json_response({"status": "live"})

    async def _ready(self, call: Call) -> Response:
        if self.is_draining:
            raise NotReady("draining: no new requests are taken")
        if not self.engine.is_ready:
            raise NotReady("the engine takes no requests now" if self.has_started else "the engine is starting")
        return json_response({"status": "ready"})

    async def _version(self, call: Call) -> Response:
        return json_response({"version": penstock.__version__})

    async def _load(self, call: Call) -> Response:
        counters = self.engine.counters()
        running, waiting = counters.get("requests_running"), counters.get("requests_waiting")
        load = None if running is None or waiting is None else int(running + waiting)
        return json_response({"server_load": load, "requests_running": running, "requests_waiting": waiting})

    async def _metrics(self, call: Call) -> Response:
        return Response(self.metrics.text(), content_type=CONTENT_TYPE_LATEST.encode())


def create_app(engine: AsyncEngine, tokenizer: Tokenizer, config: ApiConfig) -> App:
    """The application for an engine that runs, whatever it runs on."""
    return App(engine, tokenizer, config)
