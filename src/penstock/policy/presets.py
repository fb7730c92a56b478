"""Named sets of policies, and how names and options become objects.

`TABLES` is the one list of slots; the command line, `penstock systems` and the contract tests read it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import msgspec

from penstock.core.errors import ConfigError, UnknownName
from penstock.core.view import (
    AdmitPolicy,
    BatchPolicy,
    LengthPredictor,
    Observer,
    OrderPolicy,
    PreemptPolicy,
    RetainPolicy,
)
from penstock.policy.admit import ADMIT
from penstock.policy.batch import BATCH
from penstock.policy.order import ORDER
from penstock.policy.predict import PREDICT
from penstock.policy.preempt import PREEMPT
from penstock.policy.retain import RETAIN

TABLES: Mapping[str, Mapping[str, type]] = MappingProxyType(
    {"order": ORDER, "admit": ADMIT, "batch": BATCH, "preempt": PREEMPT, "retain": RETAIN, "predict": PREDICT}
)

DEFAULT: Mapping[str, str] = MappingProxyType(
    {
        "order": "fcfs",
        "admit": "watermark",
        "batch": "decode-first",
        "preempt": "cheapest",
        "retain": "lru",
        "predict": "empirical-quantile",
    }
)

# Each preset says how it differs from the default.
PRESETS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "default": {},
        "conservative": {"admit": "worst-case", "predict": "max-tokens"},
        "prefill-first": {"batch": "prefill-first"},
        "priority": {"order": "priority"},
        "deadline": {"order": "edf"},
        "shortest-prefill": {"order": "shortest-prefill"},
        "cache-aware": {"order": "longest-prefix-match"},
        "recompute": {"preempt": "newest"},
        "in-time": {"admit": "in-time"},
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """One object per slot; `new_retain` makes one per block pool."""

    order: OrderPolicy
    admit: AdmitPolicy
    batch: BatchPolicy
    preempt: PreemptPolicy
    predict: LengthPredictor
    new_retain: Callable[[], RetainPolicy]
    names: Mapping[str, str]


EVENTS = ("on_arrival", "on_step", "on_finish", "on_pressure")


def observers_of(policies: Policies, event: str) -> tuple[Observer, ...]:
    """The policies that do something when told of this event."""
    slots = (policies.order, policies.admit, policies.batch, policies.preempt, policies.predict)
    observers = (slot for slot in slots if isinstance(slot, Observer))
    return tuple(slot for slot in observers if getattr(type(slot), event, None) is not getattr(Observer, event))


def build_policies(
    preset: str = "default",
    slots: Mapping[str, str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Policies:
    """The policies of a preset, with single slots replaced and options set.

    slots: slot -> policy name. options: slot -> option -> value; text is converted to the option's type.
    Raises UnknownName (with the known ones) or ConfigError (a value of the wrong type).
    """
    if preset not in PRESETS:
        raise UnknownName("policy preset", preset, PRESETS)
    names = {**DEFAULT, **PRESETS[preset]}
    for slot, name in (slots or {}).items():
        if slot not in TABLES:
            raise UnknownName("policy slot", slot, TABLES)
        names[slot] = name
    for slot in options or {}:
        if slot not in TABLES:
            raise UnknownName("policy slot", slot, TABLES)
    made = {slot: _maker(slot, name, (options or {}).get(slot, {})) for slot, name in names.items()}
    return Policies(
        order=cast(OrderPolicy, made["order"]()),
        admit=cast(AdmitPolicy, made["admit"]()),
        batch=cast(BatchPolicy, made["batch"]()),
        preempt=cast(PreemptPolicy, made["preempt"]()),
        predict=cast(LengthPredictor, made["predict"]()),
        new_retain=cast(Callable[[], RetainPolicy], made["retain"]),
        names=MappingProxyType(names),
    )


def option_fields(policy: type) -> dict[str, dataclasses.Field[Any]]:
    """The options of a policy class, by name."""
    return {field.name: field for field in dataclasses.fields(policy)} if dataclasses.is_dataclass(policy) else {}


def _maker(slot: str, name: str, options: Mapping[str, Any]) -> Callable[[], object]:
    table = TABLES[slot]
    if name not in table:
        raise UnknownName(f"{slot} policy", name, table)
    policy = table[name]
    known = option_fields(policy)
    for option in options:
        if option not in known:
            raise UnknownName(f"option of the {slot} policy {name!r}", option, known or ["(it has none)"])
    try:
        made = msgspec.convert(dict(options), policy, strict=False) if known else policy()
    except (msgspec.ValidationError, ValueError) as wrong:
        raise ConfigError(f"{slot} policy {name!r}: {wrong}; see `penstock policies` for its options") from None
    if slot != "retain":
        return lambda: made
    return lambda: msgspec.convert(dict(options), policy, strict=False) if known else policy()
