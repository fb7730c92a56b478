"""Reading the text files of a model: of bounded size, regular, and text. No byte of them is trusted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from penstock.core.errors import CorruptModel, ModelNotFound

MAX_TEXT_BYTES = 1 << 26  # the largest real one, an index of 140,000 tensors, has 15 MB
_HALF_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def read_text(path: Path, most_bytes: int = MAX_TEXT_BYTES) -> str:
    """Raises ModelNotFound without the file, CorruptModel if it cannot be read as UTF-8."""
    check_size(path, most_bytes)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CorruptModel(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise CorruptModel(f"{path} is not UTF-8 text. Download it again") from None


def check_size(path: Path, most_bytes: int) -> None:
    """Raises ModelNotFound without the file, CorruptModel for what is no regular file or is too large."""
    if not path.exists():
        raise ModelNotFound(f"{path} does not exist")
    if not path.is_file():  # reading a pipe would wait for ever
        raise CorruptModel(f"{path} is no regular file")
    size_bytes = path.stat().st_size
    if size_bytes > most_bytes:
        raise CorruptModel(f"{path} has {size_bytes} bytes, more than the {most_bytes} that are read")


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelNotFound or CorruptModel."""
    text = read_text(path)
    try:
        values = json.loads(text)
        if _HALF_ESCAPE.search(text):  # half of a pair is no character: no library further on takes it
            json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CorruptModel(f"{path} is no valid JSON: {error}. Download it again") from None
    if not isinstance(values, dict):
        raise CorruptModel(f"{path} holds a JSON {type(values).__name__}, expected an object. Download it again")
    return values
