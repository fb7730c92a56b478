"""Reading a foreign config.json: every value is asked for by name and type, and a complaint names key and file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penstock.core.errors import CorruptModel, UnsupportedModel
from penstock.formats.text_file import read_object

REQUIRED: Any = object()
MAX_SHOWN_CHARS = 80
MAX_FLOAT = sys.float_info.max  # a JSON integer may be larger


def short(value: Any) -> str:
    """A value that a message can hold, whatever a file made of it."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a very deep {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_FLOAT


class ConfigFile:
    """The values of a JSON object and where they come from. A key that is null counts as absent."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    @classmethod
    def read(cls, path: Path) -> ConfigFile:
        """Raises ModelNotFound without the file, CorruptModel if it is no JSON object."""
        return cls(read_object(path), str(path))

    def is_null(self, key: str) -> bool:
        """The key is there and null, where that means something else than its absence."""
        return key in self.values and self.values[key] is None

    def integer(self, *keys: str, default: Any = REQUIRED, least: int = 1, most: int = 2**31 - 1) -> Any:
        """An int from `least` to `most`, under the first of `keys` that is there."""
        key, value = self._find(keys, default)
        if value is default:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, "a whole number")
        if not least <= value <= most:
            raise self.wrong(key, f"a number from {least} to {most}")
        return value

    def number(self, key: str, default: Any = REQUIRED) -> Any:
        """A positive finite float."""
        key, value = self._find((key,), default)
        if value is default:
            return default
        if not _is_positive(value):
            raise self.wrong(key, "a positive number")
        return float(value)

    def flag(self, key: str, default: Any = REQUIRED) -> Any:
        key, value = self._find((key,), default)
        if value is not default and not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, *keys: str, default: Any = REQUIRED) -> Any:
        key, value = self._find(keys, default)
        if value is not default and not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def integers(self, key: str, default: Any = REQUIRED) -> Any:
        """A tuple of ints from 0 to 2**31 - 1; one int stands for a list of one."""
        key, value = self._find((key,), default)
        if value is default:
            return default
        listed = value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**31 for item in listed):
            raise self.wrong(key, "a number from 0 on, or a list of them")
        return tuple(listed)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of positive finite floats."""
        key, value = self._find((key,), REQUIRED)
        if not isinstance(value, list) or not all(_is_positive(item) for item in value):
            raise self.wrong(key, "a list of positive numbers")
        return tuple(float(item) for item in value)

    def section(self, *keys: str) -> ConfigFile | None:
        """The object under the first of `keys` that is there and not empty; None without one."""
        for key in keys:
            value = self.values.get(key)
            if value is None or value == {}:
                continue
            if not isinstance(value, dict):
                raise self.wrong(key, "an object")
            return ConfigFile(value, f"{self.source}: {key}")
        return None

    def require(self, key: str, supported: Any, *, default: Any) -> None:
        """Refuse a value of `key` other than `supported`; `default` is what its absence means."""
        _, value = self._find((key,), default)
        if value != supported:
            raise UnsupportedModel(f"{self.source}: {key} is {short(value)}; supported: {supported!r}")

    def wrong(self, key: str, wanted: str) -> CorruptModel:
        return CorruptModel(f"{self.source}: {key} is {short(self.values[key])}, expected {wanted}")

    def _find(self, keys: tuple[str, ...], default: Any) -> tuple[str, Any]:
        for key in keys:
            value = self.values.get(key)
            if value is not None:
                return key, value
        if default is REQUIRED:
            raise CorruptModel(f"{self.source}: the key {' or '.join(keys)} is missing")
        return keys[0], default
