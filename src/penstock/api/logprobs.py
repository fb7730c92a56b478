"""Tokens and their probabilities in the two forms that clients read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from penstock.core.executor import TokenLogprobs
from penstock.text.tokenizer import Tokenizer

FLOOR = -9999.0  # JSON has no infinity


class TokenNames(dict[int, tuple[str, bytes]]):
    """How a token is called towards clients, and its bytes.

    A part of a character gets a name of its own, `bytes:\\xe4`: all of them would be U+FFFD otherwise, and entries of a
    dictionary by name would hide each other.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, token_id: int) -> tuple[str, bytes]:
        data = self._tokenizer.token_bytes(token_id)
        try:
            name = data.decode()
        except UnicodeDecodeError:
            name = "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
        self[token_id] = (name, data)
        return name, data


class CompletionLogprobs:
    """The form of /v1/completions for one choice: parallel lists; `text_offset` runs on from part to part."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._offset = 0

    def part(self, tokens: Iterable[int], entries: Iterable[TokenLogprobs | None]) -> dict[str, list[Any]]:
        """One part of the answer; entry None: a token that nothing comes before."""
        part: dict[str, list[Any]] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        for token, entry in zip(tokens, entries, strict=True):
            name, data = self._names[token]
            part["text_offset"].append(self._offset)
            part["tokens"].append(name)
            part["token_logprobs"].append(None if entry is None else max(entry.logprob, FLOOR))
            part["top_logprobs"].append(None if entry is None else self._top(entry))
            self._offset += len(data.decode(errors="ignore"))
        return part

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        """By name, most likely first; the chosen token is always among them."""
        top: dict[str, float] = {}
        for token, logprob in (*entry.top, (entry.token, entry.logprob)):
            top.setdefault(self._names[token][0], max(logprob, FLOOR))
        return top


def chat_logprobs(names: TokenNames, entries: Iterable[TokenLogprobs]) -> dict[str, list[Any]]:
    """The form of /v1/chat/completions."""
    return {
        "content": [
            {
                **_chat_entry(names, entry.token, entry.logprob),
                "top_logprobs": [_chat_entry(names, token, logprob) for token, logprob in entry.top],
            }
            for entry in entries
        ]
    }


def _chat_entry(names: TokenNames, token: int, logprob: float) -> dict[str, Any]:
    name, data = names[token]
    return {"token": name, "logprob": max(logprob, FLOOR), "bytes": list(data)}


def prompt_logprobs(
    names: TokenNames, entries: Iterable[TokenLogprobs | None]
) -> list[dict[str, dict[str, Any]] | None]:
    """One dictionary by token id for each token of the prompt; None for the first."""
    return [None if entry is None else _by_id(names, entry) for entry in entries]


def _by_id(names: TokenNames, entry: TokenLogprobs) -> dict[str, dict[str, Any]]:
    ranked = [(token, logprob, rank) for rank, (token, logprob) in enumerate(entry.top, start=1)]
    return {
        str(token): {"logprob": max(logprob, FLOOR), "rank": rank, "decoded_token": names[token][0]}
        for token, logprob, rank in [*ranked, (entry.token, entry.logprob, entry.rank)]
    }
