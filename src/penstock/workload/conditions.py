"""Conditions on requests as a person writes them: `category=api`, `input_tokens<=2048`, `session!=`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from penstock.workload.trace import TraceError, TraceRequest

NAMES = ("client", "session", "category", "model")
NUMBERS = ("arrival_s", "input_tokens", "output_tokens", "turn", "pause_s", "elapsed_s")
EQUALITIES: Mapping[str, Callable[[Any, Any], bool]] = {"=": operator.eq, "!=": operator.ne}
RELATIONS: Mapping[str, Callable[[Any, Any], bool]] = {
    **EQUALITIES, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def parse_condition(text: str) -> Callable[[TraceRequest], bool]:
    """A test of a request. An absent name is empty; a number that is absent holds no condition. Raises TraceError."""
    found = re.fullmatch(r"\s*([a-z_]+)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*", text)
    if found is None or found[1] not in (*NAMES, *NUMBERS):
        raise TraceError(
            f"{text!r} is not a condition: give one of {', '.join((*NAMES, *NUMBERS))}, then =, !=, <, <=, > or >=, "
            "then a value, as category=api or input_tokens<=2048"
        )
    name, sign, value = found.groups()
    relation = RELATIONS[sign]
    if name in NAMES:
        if sign not in EQUALITIES:
            raise TraceError(f"{text!r}: names have no order, compare {name} with = or !=")
        return lambda request: relation(getattr(request, name) or "", value)
    try:
        limit = float(value)
    except ValueError:
        raise TraceError(f"{text!r}: {name} is a number, and {value!r} is none") from None

    def holds(request: TraceRequest) -> bool:
        have = getattr(request, name)
        return have is not None and relation(have, limit)

    return holds
