"""How tokens become text, one stream at a time.

The text of a stream, joined, is the text of all its ids decoded at once. That needs care, since a character may be
spread over several tokens, and a space may belong to the join and not to a token. How pieces are joined is known for
the two families in use, so those need no trial decoding:

- byte level: a token is a string of bytes; an incremental UTF-8 decoder does the rest;
- sentence pieces: a token is text in which a mark stands for a space, or one byte. A run of byte tokens is text only
  as a whole (one bad byte spoils all of it), so it is held back until it ends, or for `MAX_RUN_BYTES`.

Anything else goes through a window of the last tokens that is decoded again with each new one.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import tokenizers

INVALID = "\ufffd"
MAX_RUN_BYTES = 64  # a longer run of byte tokens is emitted as it grows: a script that has no tokens of its own
MAX_HELD_TOKENS = 16  # the window gives up waiting for a whole character after so many tokens


class Joiner(Protocol):
    """Joins the tokens of one stream."""

    def push(self, ids: Iterable[int]) -> str: ...
    def flush(self) -> str: ...


class Scheme(Protocol):
    """How one tokenizer joins tokens; shared by all its streams."""

    def joiner(self, prompt_tail: Sequence[int]) -> Joiner:
        """Start a stream after the given prompt ids."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """What an id contributes to the text, in the middle of it."""
        ...


def make_scheme(backend: tokenizers.Tokenizer) -> Scheme:
    """Choose by the `decoder` part of tokenizer.json."""
    decoder = backend.decoder
    spec = None if decoder is None else json.loads(decoder.__getstate__())
    if spec is not None and spec["type"] == "ByteLevel":
        return ByteLevel(backend)
    rules = _sentence_rules(spec)
    return Window(backend) if rules is None else SentencePieces(backend, rules)


def _byte_of_char() -> Mapping[str, int]:
    """The inverse of GPT-2's map from bytes to printable characters."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + k): b for k, b in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()


class ByteLevel(dict[int, bytes]):
    """The bytes of each id, filled when first seen: most of a large vocabulary never is."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        super().__init__()
        self._backend = backend

    def joiner(self, prompt_tail: Sequence[int]) -> Joiner:
        return _ByteJoiner(self, prompt_tail)

    def token_bytes(self, token_id: int) -> bytes:
        return self[token_id]

    def __missing__(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id) or ""
        try:
            piece = bytes([_BYTE_OF_CHAR[char] for char in token])
        except KeyError:  # an added token outside the alphabet stands for itself
            piece = token.encode()
        self[token_id] = piece
        return piece


class _ByteJoiner:
    __slots__ = ("_decode", "_pieces", "_prompt_owes")

    def __init__(self, pieces: ByteLevel, prompt_tail: Sequence[int]) -> None:
        self._pieces = pieces
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decode = decoder.decode
        for token_id in prompt_tail:
            self._decode(pieces[token_id])
        self._prompt_owes = bool(decoder.getstate()[0])

    def push(self, ids: Iterable[int]) -> str:
        pieces = self._pieces
        text = self._decode(b"".join([pieces[i] for i in ids]))
        return self._without_prompt(text) if self._prompt_owes and text else text

    def flush(self) -> str:
        text = self._decode(b"", True)
        return self._without_prompt(text) if self._prompt_owes else text

    def _without_prompt(self, text: str) -> str:
        """The prompt ended within a character. If it was never completed, its U+FFFD is the prompt's, not ours."""
        self._prompt_owes = False
        return text.removeprefix(INVALID)


@dataclass(frozen=True, slots=True, kw_only=True)
class _SentenceRules:
    """What a decoder does: `replace` (old, new) in each piece, then strip `strip` up to `strip_max` times at the start.

    drop_first: instead, every mark of the first piece goes (the Metaspace decoder).
    """

    replace: tuple[tuple[str, str], ...]
    has_bytes: bool = False
    strip: str = " "
    strip_max: int = 0
    drop_first: str | None = None


def _sentence_rules(spec: Mapping[str, Any] | None) -> _SentenceRules | None:
    """The rules of a decoder if it is one of this family, None otherwise."""
    if spec is None:
        return None
    if spec["type"] == "Metaspace":
        mark = spec["replacement"]
        return _SentenceRules(replace=((mark, " "),), drop_first=None if spec["prepend_scheme"] == "never" else mark)
    parts = spec["decoders"] if spec["type"] == "Sequence" else [spec]
    replace = []
    while parts and parts[0]["type"] == "Replace" and "String" in parts[0]["pattern"]:
        replace.append((parts[0]["pattern"]["String"], parts[0]["content"]))
        parts = parts[1:]
    has_bytes = bool(parts) and parts[0]["type"] == "ByteFallback"
    parts = parts[1:] if has_bytes else parts
    match [(part["type"], part) for part in parts]:
        case [] | [("Fuse", _)] if replace or has_bytes:
            return _SentenceRules(replace=tuple(replace), has_bytes=has_bytes)
        case [("Fuse", _), ("Strip", strip)] if strip["stop"] == 0:
            return _SentenceRules(
                replace=tuple(replace), has_bytes=has_bytes, strip=strip["content"], strip_max=strip["start"]
            )
    return None


class SentencePieces(dict[int, "str | int | None"]):
    """The text of each id, or the value of a byte token; None for an id outside the vocabulary, which is skipped."""

    def __init__(self, backend: tokenizers.Tokenizer, rules: _SentenceRules) -> None:
        super().__init__()
        self._backend = backend
        self.rules = rules

    def joiner(self, prompt_tail: Sequence[int]) -> Joiner:
        return _SentenceJoiner(self, prompt_tail)

    def token_bytes(self, token_id: int) -> bytes:
        piece = self[token_id]
        return bytes([piece]) if isinstance(piece, int) else (piece or "").encode()

    def __missing__(self, token_id: int) -> str | int | None:
        token = self._backend.id_to_token(token_id)
        piece = None if token is None else self._piece(token)
        self[token_id] = piece
        return piece

    def _piece(self, token: str) -> str | int:
        for old, new in self.rules.replace:
            token = token.replace(old, new)
        if self.rules.has_bytes and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes.fromhex(token[3:5])[0]
            except ValueError:
                return token
        return token

    def first(self, token_id: int, piece: str | int) -> str | int:
        """The piece of an id as it is at the start of a text."""
        if self.rules.drop_first is None:
            return piece
        return (self._backend.id_to_token(token_id) or "").replace(self.rules.drop_first, "")


class _SentenceJoiner:
    __slots__ = ("_is_first", "_is_long_run", "_pieces", "_prompt_bytes", "_run", "_strip_left")

    def __init__(self, pieces: SentencePieces, prompt_tail: Sequence[int]) -> None:
        self._pieces = pieces
        self._run = bytearray()  # byte tokens that are not text yet
        self._is_long_run = False
        self._prompt_bytes = 0  # how many of them the prompt had
        self._is_first = True
        self._strip_left = pieces.rules.strip_max
        if prompt_tail:
            self._strip_left = 0  # the start of the text is the prompt's
            self.push(prompt_tail)
            self._prompt_bytes = len(self._run)

    def push(self, ids: Iterable[int]) -> str:
        out = []
        pieces = self._pieces
        for token_id in ids:
            piece = pieces[token_id]
            if piece is None:
                continue
            if self._is_first:
                piece, self._is_first = pieces.first(token_id, piece), False
            if isinstance(piece, int):
                self._run.append(piece)
                if self._is_long_run or len(self._run) > MAX_RUN_BYTES:
                    out.append(self._whole_characters())
            else:
                if self._run:
                    out.append(self._end_run())
                out.append(piece)
        text = "".join(out)
        return self._strip(text) if self._strip_left and text else text

    def flush(self) -> str:
        text = self._end_run()
        return self._strip(text) if self._strip_left else text

    def _end_run(self) -> str:
        """A run that is no UTF-8 as a whole becomes one U+FFFD per byte."""
        run, prompt_bytes = bytes(self._run), self._prompt_bytes
        self._run.clear()
        self._prompt_bytes, self._is_long_run = 0, False
        try:
            text = run.decode()
        except UnicodeDecodeError:
            return INVALID * (len(run) - prompt_bytes)
        return text[len(run[:prompt_bytes].decode(errors="ignore")) :]

    def _whole_characters(self) -> str:
        """Give up waiting for the end of the run: emit all but a character that may still be completed."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(bytes(self._run))
        shown = len(bytes(self._run[: self._prompt_bytes]).decode(errors="ignore"))
        self._run = bytearray(decoder.getstate()[0])
        self._prompt_bytes, self._is_long_run = 0, True
        return text[shown:]

    def _strip(self, text: str) -> str:
        while self._strip_left and text.startswith(self._pieces.rules.strip):
            text = text[len(self._pieces.rules.strip) :]
            self._strip_left -= 1
        if text:
            self._strip_left = 0
        return text


class Window:
    """Joins in a way that only the library knows."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend

    def joiner(self, prompt_tail: Sequence[int]) -> Joiner:
        return _WindowJoiner(self._backend, prompt_tail)

    def token_bytes(self, token_id: int) -> bytes:
        return self._backend.decode([token_id], skip_special_tokens=False).encode()


class _WindowJoiner:
    """Decodes the tokens since the last emission, with those of the emission before as context."""

    __slots__ = ("_backend", "_ids", "_shown", "_shown_ids")

    def __init__(self, backend: tokenizers.Tokenizer, prompt_tail: Sequence[int]) -> None:
        self._backend = backend
        self._ids = list(prompt_tail)
        self._shown_ids = len(self._ids)
        self._shown = len(self._text())

    def push(self, ids: Iterable[int]) -> str:
        self._ids.extend(ids)
        text = self._text()
        held_tokens = len(self._ids) - self._shown_ids
        if len(text) <= self._shown or (text.endswith(INVALID) and held_tokens <= MAX_HELD_TOKENS):
            return ""
        return self._show(text)

    def flush(self) -> str:
        return self._show(self._text())

    def _show(self, text: str) -> str:
        new = text[self._shown :]
        del self._ids[: self._shown_ids]
        self._shown_ids = len(self._ids)
        self._shown = len(self._text())
        return new

    def _text(self) -> str:
        return self._backend.decode(self._ids, skip_special_tokens=False)
