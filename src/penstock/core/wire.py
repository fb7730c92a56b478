"""How token ids travel between processes: the hooks of an encoder and a decoder for everything else that is data."""

from __future__ import annotations

from array import array
from typing import Any


def encode_tokens(value: Any) -> Any:
    if isinstance(value, array):
        return value.tobytes()
    raise NotImplementedError(f"{type(value).__name__} has no wire form")


def decode_tokens(kind: type, value: Any) -> Any:
    if not isinstance(value, bytes):
        raise TypeError(f"token ids travel as bytes, not as {type(value).__name__}")
    return array("i", value)
