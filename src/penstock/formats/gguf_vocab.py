"""What a GGUF file says about its vocabulary, checked: tokens, their kinds, and which of them end an answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from penstock.core.errors import CorruptModel
from penstock.formats.gguf import GgufFile

PREFIX = "tokenizer.ggml."
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
# The file names one token that ends a text; a turn of a chat may end with another, which llama.cpp finds by its name.
ENDS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>")


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufVocab:
    """kinds: as long as tokens. Ids are below len(tokens)."""

    tokens: list[str]
    kinds: list[int]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int | None
    end_ids: tuple[int, ...]

    @classmethod
    def of(cls, file: GgufFile) -> GgufVocab:
        """Raises CorruptModel. A file without tokens has an empty vocabulary."""
        tokens = strings(file, f"{PREFIX}tokens")
        kinds = file.metadata.get(f"{PREFIX}token_type")
        if kinds is None:
            kinds = [NORMAL] * len(tokens)
        if not isinstance(kinds, list) or len(kinds) != len(tokens) or not all(type(kind) is int for kind in kinds):
            raise CorruptModel(f"{file.path}: {PREFIX}token_type is no list of {len(tokens)} numbers")
        ids = {
            role: _token_id(file, f"{PREFIX}{role}_token_id", len(tokens))
            for role in ("bos", "eos", "padding", "unknown", "eot", "eom")
        }
        ends = {ids["eos"], ids["eot"], ids["eom"], *_named_ends(tokens, kinds)}
        return cls(
            tokens=tokens,
            kinds=kinds,
            bos_id=ids["bos"],
            eos_id=ids["eos"],
            pad_id=ids["padding"],
            unk_id=ids["unknown"],
            end_ids=tuple(sorted(end for end in ends if end is not None)),
        )


def strings(file: GgufFile, key: str) -> list[str]:
    """The list of strings under a key; empty without the key."""
    value: Any = file.metadata.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CorruptModel(f"{file.path}: {key} is no list of strings")
    return value


def _named_ends(tokens: list[str], kinds: list[int]) -> Iterator[int]:
    return (at for at, token in enumerate(tokens) if token in ENDS and kinds[at] == CONTROL)


def _token_id(file: GgufFile, key: str, n_tokens: int) -> int | None:
    value = file.metadata.get(key)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < 2**31:
        raise CorruptModel(f"{file.path}: {key} is {value!r:.40}, expected a token id")
    return value if value < n_tokens or not n_tokens else None  # 2**32 - 1 and the like stand for none
