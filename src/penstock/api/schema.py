"""The bodies of requests, as clients send them: any optional field may also be null.

A field that is not here is ignored, but named in the answer's `x-penstock-ignored-fields` header. A field of
`NEUTRAL` is one whose feature is not built: only the values that ask for nothing are taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from penstock.api.errors import BadBody
from penstock.api.http import Header
from penstock.core.errors import InvalidRequest

IGNORED_HEADER = b"x-penstock-ignored-fields"
MAX_IGNORED_NAMES = 16
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PATH = re.compile(r" - at (?:`key` in )?`\$\.?([A-Za-z0-9_]*)")


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ObjectiveBody(msgspec.Struct):
    """The limits of one request, in seconds."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    deadline_s: float | None = None
    weight: float | None = None


class Generation(msgspec.Struct, kw_only=True):
    """What both doors to generation share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    user: str | None = None
    session_id: str | None = None
    request_id: str | None = None
    cache_salt: str | None = None
    priority: int | None = None
    objective: ObjectiveBody | None = None
    # not built: see NEUTRAL
    length_penalty: Any = None
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    regex: Any = None
    ebnf: Any = None
    json_schema: Any = None
    grammar: Any = None
    use_beam_search: Any = None
    truncate_prompt_tokens: Any = None
    return_token_ids: Any = None
    return_tokens_as_token_ids: Any = None
    prompt_embeds: Any = None
    lora: Any = None


class CompletionBody(Generation, kw_only=True):
    """POST /v1/completions. `prompt` is a string, strings, ids, or lists of ids: decoded by its first characters."""

    prompt: msgspec.Raw
    echo: bool | None = None
    logprobs: int | None = None
    add_special_tokens: bool | None = None
    suffix: Any = None
    best_of: Any = None


class ContentPart(msgspec.Struct):
    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct, omit_defaults=True):
    """One message; what is None is not shown to the template, but for the content."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class TemplateOptions(msgspec.Struct, omit_defaults=True):
    """The variables of a template that a request may set; a list, since a template trusts its variables."""

    enable_thinking: bool | None = None
    thinking: bool | None = None


class ChatBody(Generation, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    echo: Any = None
    chat_template: Any = None
    continue_final_message: Any = None
    documents: Any = None
    modalities: Any = None
    audio: Any = None
    add_special_tokens: bool | None = None


class TokenizeBody(msgspec.Struct, kw_only=True):
    """POST /tokenize: a prompt, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    model: str | None = None
    tokens: list[int]


EMPTY: tuple[Any, ...] = ([], {}, "", False)
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "length_penalty": (1,),
    "response_format": ({"type": "text"},),
    "structured_outputs": EMPTY,
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "regex": (),
    "ebnf": (),
    "json_schema": (),
    "grammar": EMPTY,
    "use_beam_search": (False,),
    "truncate_prompt_tokens": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "prompt_embeds": EMPTY,
    "lora": EMPTY,
    "suffix": ("",),
    "functions": EMPTY,
    "function_call": ("none",),
    "echo": (False,),
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": EMPTY,
    "modalities": (["text"],),
    "audio": (),
}

B = TypeVar("B", bound=msgspec.Struct)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def decode_body(data: bytes, kind: type[B]) -> tuple[B, tuple[Header, ...]]:
    """The body, and the header that names what was ignored. Raises BadBody at the first fault."""
    try:
        body = msgspec.json.decode(data, type=kind)
        unknown = [name for name in _fields.decode(data) if name not in kind.__struct_fields__]
    except msgspec.ValidationError as error:
        raise wrong_type(error) from None
    except UnicodeDecodeError as error:
        raise BadBody(f"the body is not UTF-8 (byte {error.start})") from None
    except msgspec.DecodeError as error:
        raise BadBody(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise BadBody("the body is nested too deeply") from None
    return body, _ignored(unknown)


def wrong_type(error: msgspec.ValidationError, param: str | None = None) -> BadBody:
    """A field of a wrong type; the library's message names types and the place, never the value."""
    match = _PATH.search(str(error))
    return BadBody(str(error), param=param or (match[1] if match and match[1] else None))


def _ignored(unknown: list[str]) -> tuple[Header, ...]:
    if not unknown:
        return ()
    names = [name if _NAME.fullmatch(name) else "?" for name in unknown[:MAX_IGNORED_NAMES]]
    return ((IGNORED_HEADER, ", ".join(names).encode()),)


def check_neutral(body: Generation) -> None:
    """Raise InvalidRequest if the body asks for a feature that is not built and that would change the answer."""
    built = _BUILT_IN.get(type(body), frozenset())
    for name in body.__struct_fields__:
        if name in NEUTRAL and name not in built:
            value = getattr(body, name)
            if value is not None and not _is_neutral(value, NEUTRAL[name]):
                raise InvalidRequest(f"{name} is not supported: leave it out", param=name)


_BUILT_IN: Mapping[type[msgspec.Struct], frozenset[str]] = {CompletionBody: frozenset({"echo"})}


def _is_neutral(value: object, neutral: tuple[Any, ...]) -> bool:
    return any(value == taken and isinstance(value, bool) == isinstance(taken, bool) for taken in neutral)
