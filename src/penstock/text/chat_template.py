"""From chat messages to a prompt, by the template that comes with a model.

A template is a program that somebody else wrote, run on text that somebody else sent. minijinja executes it without
access to Python objects and counts its steps; what it puts out is capped. What no counter sees is one huge product of
a string, so templates are taken from the model's directory only, never from a request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import minijinja

from penstock.core.errors import InvalidRequest
from penstock.text.tokenizer import SpecialTokens, Tokenizer

FUEL_STEPS = 100_000  # a message costs some tens of them in the templates of today's models
MAX_OUTPUT_CHARS = 4_000_000
MAX_REASON_CHARS = 200
_NAME = "chat"
_PROBE = "penstock probe"
_GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


class _Refused(Exception):
    """The template called `raise_exception`."""


# A template may call methods of the lists and dicts that it is given (none that begins with "_"): so Python's own
# errors are among those of a template.
_FAULTS = (minijinja.TemplateError, AttributeError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError)


class ChatTemplate:
    """Renders messages. May be used from several threads.

    source None: the model has no template. problem: why nothing can be rendered, None if all is well.
    """

    def __init__(
        self,
        source: str | None,
        special: SpecialTokens | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        special = special or SpecialTokens()
        tokens = {
            "bos_token": special.bos,
            "eos_token": special.eos,
            "pad_token": special.pad,
            "unk_token": special.unk,
        }
        self._tokens = {name: token for name, token in tokens.items() if token is not None}
        self._environment = _environment(now)
        self.problem = self._load(source)
        self._takes_strings, self._takes_lists = (False, False) if self.problem else self._probe()

    @classmethod
    def of(cls, tokenizer: Tokenizer, now: Callable[[], datetime] = datetime.now) -> ChatTemplate:
        return cls(tokenizer.chat_template, tokenizer.special, now)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. `options` are further variables of the template. Raises InvalidRequest."""
        if self.problem is not None:
            raise InvalidRequest(self.problem, param="messages")
        shaped = [self._shaped(message) for message in messages]
        try:
            prompt = self._render(shaped, add_generation_prompt, options or {})
        except _Refused as refusal:
            reason = " ".join(str(refusal).split())[:MAX_REASON_CHARS]
            raise InvalidRequest(
                f"the model's chat template refuses the messages: {reason}", param="messages"
            ) from None
        except _FAULTS as error:
            raise InvalidRequest(_explain(error), param="messages") from None
        if len(prompt) > MAX_OUTPUT_CHARS:
            raise InvalidRequest(
                f"the messages make a prompt of {len(prompt)} characters; at most {MAX_OUTPUT_CHARS} are taken",
                param="messages",
            )
        return prompt

    def _load(self, source: str | None) -> str | None:
        if source is None:
            return "this model has no chat template: send the prompt to /v1/completions"
        try:
            self._environment.add_template(_NAME, _GENERATION.sub(_as_condition, source))
        except minijinja.TemplateError as error:
            return f"the model's chat template cannot be compiled ({_one_line(error)}): use /v1/completions"
        return None

    def _probe(self) -> tuple[bool, bool]:
        """Whether the template reads content that is a string, and content that is a list of parts."""
        contents = (_PROBE, [{"type": "text", "text": _PROBE}])
        takes_strings, takes_lists = (self._is_read(content) for content in contents)
        return takes_strings or not takes_lists, takes_lists

    def _is_read(self, content: object) -> bool:
        try:
            prompt = self._render([{"role": "user", "content": content}], True, {})
        except (*_FAULTS, _Refused):
            return False
        return _PROBE in prompt and "'text'" not in prompt and '"text"' not in prompt  # not a list, printed

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool, options: Mapping[str, Any]) -> str:
        variables = {"tools": None, "documents": None, **options, **self._tokens}
        return self._environment.render_template(
            _NAME, messages=messages, add_generation_prompt=add_generation_prompt, **variables
        )

    def _shaped(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The message with its content as the template reads it."""
        content = message.get("content")
        if isinstance(content, list) and not self._takes_lists:
            return {**message, "content": "\n".join(part["text"] for part in content)}
        if isinstance(content, str) and not self._takes_strings:
            return {**message, "content": [{"type": "text", "text": content}]}
        return dict(message)


def _environment(now: Callable[[], datetime]) -> minijinja.Environment:
    """As the `transformers` library sets up Jinja for chat templates."""
    environment = minijinja.Environment(fuel=FUEL_STEPS, trim_blocks=True, lstrip_blocks=True, pycompat=True)
    environment.auto_escape_callback = lambda name: False
    environment.add_global("raise_exception", _raise_exception)
    environment.add_global("strftime_now", lambda form: now().strftime(form))
    environment.add_filter("tojson", _tojson)
    return environment


def _raise_exception(message: object = "") -> None:
    raise _Refused(str(message))


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _as_condition(match: re.Match[str]) -> str:
    """`{% generation %}` only marks what a model said, for training: it becomes a condition that always holds."""
    return f"{match[1]}{'endif' if match[2] else 'if true'}{match[3]}"


def _explain(error: Exception) -> str:
    if not isinstance(error, minijinja.TemplateError):
        return f"the model's chat template cannot render these messages ({type(error).__name__})"
    if error.kind == "OutOfFuel":
        return f"the model's chat template takes more than {FUEL_STEPS} steps for these messages: send fewer"
    return f"the model's chat template cannot render these messages: {_one_line(error)}"


def _one_line(error: minijinja.TemplateError) -> str:
    return " ".join(error.message.split())[:MAX_REASON_CHARS]
