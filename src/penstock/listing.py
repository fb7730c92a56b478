"""`penstock policies` and `penstock systems`: what can be switched on, read from the tables themselves."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from penstock.policy.presets import DEFAULT, PRESETS, TABLES, option_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A published system that works here. demonstration: a command that prints its effect."""

    name: str
    room: str
    switch: str
    demonstration: str


SYSTEMS = (
    System(
        name="burstgpt",
        room="workload",
        switch="penstock replay --trace steady|ragged|bursts|day, or penstock trace generate",
        demonstration="penstock trace show steady; penstock trace show bursts",
    ),
)


def print_policies(console: Console | None = None) -> None:
    console = console or Console()
    table = Table(title="Policies (* default)", title_justify="left")
    for column in ("slot", "policy", "what it does", "options"):
        table.add_column(column, overflow="fold")
    for slot, policies in TABLES.items():
        for name, policy in policies.items():
            mark = "*" if DEFAULT[slot] == name else ""
            table.add_row(slot, name + mark, _first_line(policy), _options(policy))
    console.print(table)
    presets = Table(title="Presets for --policy", title_justify="left")
    presets.add_column("preset")
    presets.add_column("differs from the default by")
    for name, slots in PRESETS.items():
        presets.add_row(name, ", ".join(f"{slot}={policy}" for slot, policy in slots.items()) or "nothing")
    console.print(presets)
    console.print("Replace a slot: penstock serve --order edf. Set an option: --set batch.budget_tokens=4096.")


def print_systems(console: Console | None = None) -> None:
    console = console or Console()
    table = Table(title="Published systems that work here", title_justify="left")
    for column in ("system", "room", "switch on", "see its effect"):
        table.add_column(column, overflow="fold")
    for system in SYSTEMS:
        table.add_row(system.name, system.room, system.switch, system.demonstration)
    console.print(table)


def _first_line(policy: type) -> str:
    return (policy.__doc__ or "").strip().splitlines()[0]


def _options(policy: type) -> str:
    fields = option_fields(policy).values()
    return ", ".join(f"{f.name}={f.default}" for f in fields if f.default is not dataclasses.MISSING)
