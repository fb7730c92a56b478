"""Names and options become policies, or one line says what is wrong."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from penstock.core.errors import ConfigError, UnknownName
from penstock.core.view import Observer
from penstock.policy.presets import DEFAULT, PRESETS, TABLES, build_policies, option_fields

ROWS = [(slot, name) for slot, table in TABLES.items() for name in table]
OPTIONS = [(slot, name, option) for slot, name in ROWS for option in option_fields(TABLES[slot][name])]


def test_there_is_something_to_test():
    assert len(OPTIONS) > 5


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_built_and_names_its_policies(preset):
    policies = build_policies(preset)
    assert dict(policies.names) == {**DEFAULT, **PRESETS[preset]}
    for slot in TABLES.keys() - {"retain"}:
        assert type(getattr(policies, slot)) is TABLES[slot][policies.names[slot]]
    assert isinstance(policies.new_retain(), TABLES["retain"][policies.names["retain"]])


@pytest.mark.parametrize(("slot", "name"), ROWS)
def test_every_policy_says_what_it_is_and_is_built_from_its_name(slot, name):
    assert build_policies(slots={slot: name}).names[slot] == name
    doc = TABLES[slot][name].__doc__ or ""
    assert doc
    assert not doc.startswith(TABLES[slot][name].__name__ + "("), "a generated docstring says nothing"


def test_each_pool_gets_a_retain_policy_of_its_own():
    policies = build_policies()
    assert policies.new_retain() is not policies.new_retain()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"preset": "?"}, "unknown policy preset '?'; known: cache-aware, conservative, deadline, default"),
        ({"slots": {"?": "fcfs"}}, "unknown policy slot '.'; known: admit, batch, order, predict, preempt, retain"),
        ({"slots": {"order": "?"}}, "unknown order policy '?'; known: edf, fcfs, longest-prefix-match"),
        ({"options": {"?": {}}}, "unknown policy slot '?'; known: admit"),
        ({"options": {"batch": {"x": 1}}}, "option of the batch policy 'decode-first' 'x'; known: budget_tokens, long"),
        ({"options": {"retain": {"x": 1}}}, "option of the retain policy 'lru' 'x'; known: .it has none."),
    ],
)
def test_an_unknown_name_lists_the_known_ones(arguments, complaint):
    with pytest.raises(UnknownName, match=complaint.replace("?", r"\?")):
        build_policies(**arguments)


@pytest.mark.parametrize(("slot", "name", "option"), OPTIONS)
def test_an_option_of_a_wrong_type_or_without_sense_is_one_line(slot, name, option):
    for value in ("many", "", None, [1], {}, "nan", float("nan"), float("inf"), -1):
        with pytest.raises(ConfigError, match=f"{slot} policy '{name}'") as wrong:
            build_policies(slots={slot: name}, options={slot: {option: value}})
        assert str(wrong.value).isprintable()


@pytest.mark.parametrize(("slot", "name", "option"), OPTIONS)
def test_text_is_converted_to_the_type_of_the_option(slot, name, option):
    policy = TABLES[slot][name]
    kind = typing.get_type_hints(policy)[option]
    default = option_fields(policy)[option].default
    value, text = {
        bool: (not default, str(not default).lower()),
        int: (default + 1, str(default + 1)),
        float: (default * 0.98, repr(default * 0.98)),
    }[kind]
    for given, want in ((value, value), (text, value)):
        made = getattr(build_policies(slots={slot: name}, options={slot: {option: given}}), slot)
        assert getattr(made, option) == want
        assert type(getattr(made, option)) is kind


@pytest.mark.parametrize(
    ("slot", "name", "options"),
    [
        ("admit", "watermark", {"reserve_frac": 1.0}),
        ("batch", "decode-first", {"budget_tokens": 0}),
        ("batch", "decode-first", {"long_prefills": 0}),
        ("batch", "prefill-first", {"budget_tokens": 0}),
        ("predict", "empirical-quantile", {"bound_frac": 1.5}),
        ("predict", "empirical-quantile", {"expected_frac": 0.9, "bound_frac": 0.5}),
        ("predict", "empirical-quantile", {"window": 0}),
    ],
)
def test_an_option_with_which_nothing_would_run_is_refused(slot, name, options):
    with pytest.raises(ConfigError, match=rf"{slot} policy '{name}': .*{next(iter(options))}.*penstock policies"):
        build_policies(slots={slot: name}, options={slot: options})


def test_policies_without_state_of_their_own_cannot_be_changed():
    for slot, name in ROWS:
        policy = TABLES[slot][name]
        is_stateful = slot in ("predict", "retain") or issubclass(policy, Observer)
        if dataclasses.is_dataclass(policy) and not is_stateful:
            assert policy.__dataclass_params__.frozen  # type: ignore[attr-defined]
