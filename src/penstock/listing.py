"""What can be switched on, read from the tables themselves: for the terminal and for docs/."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from penstock.cache.blocks import NEXT as BLOCK_NEXT
from penstock.core.sequence import NEXT as SEQUENCE_NEXT
from penstock.policy.presets import DEFAULT, PRESETS, TABLES, option_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A published system that works here. demonstration: a command that prints its effect."""

    name: str
    room: str
    switch: str
    demonstration: str


StateT = TypeVar("StateT", bound=Enum)
SYSTEMS = (
    System(
        name="burstgpt",
        room="workload",
        switch="penstock replay --trace steady|ragged|bursts|day, or penstock trace generate",
        demonstration="penstock demonstrate burstgpt",
    ),
    System(
        name="flashdecoding-plus-plus",
        room="ops",
        switch="penstock serve --softmax unified (after penstock profile softmax); penstock profile kernels",
        demonstration="penstock demonstrate flashdecoding-plus-plus",
    ),
    System(
        name="hydragen",
        room="runtime",
        switch="penstock serve --shared-prefix-attention auto (the default)",
        demonstration="penstock demonstrate hydragen",
    ),
    System(
        name="streaming-llm",
        room="models",
        switch="penstock serve --window-tokens 1020 --sink-tokens 4",
        demonstration="penstock demonstrate streaming-llm",
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


# --- the same for docs/ ---


def policies_markdown() -> str:
    """The tables of docs/policies.md."""
    lines = []
    for slot, policies in TABLES.items():
        lines += [f"### {slot}", "", "| policy | what it does | options |", "| --- | --- | --- |"]
        for name, policy in policies.items():
            mark = " (default)" if DEFAULT[slot] == name else ""
            lines.append(f"| `{name}`{mark} | {_first_line(policy)} | {_options(policy) or '-'} |")
        lines.append("")
    lines += ["### presets", "", "| `--policy` | differs from the default by |", "| --- | --- |"]
    for name, slots in PRESETS.items():
        difference = ", ".join(f"{slot} = `{policy}`" for slot, policy in slots.items())
        lines.append(f"| `{name}` | {difference or 'nothing'} |")
    return "\n".join(lines)


def diagram(table: Mapping[StateT, frozenset[StateT]]) -> str:
    """A table of legal transitions as a Mermaid diagram."""
    lines = ["```mermaid", "stateDiagram-v2"]
    for state, following in table.items():
        source = state.value.replace("-", "_")
        lines += [f"    {source} --> {to.value.replace('-', '_')}" for to in sorted(following, key=lambda s: s.value)]
        if not following:
            lines.append(f"    {source} --> [*]")
    return "\n".join([*lines, "```"])


def models_markdown() -> str:
    """The table of docs/models.md."""
    from penstock.models.families import FAMILIES  # needs torch, which nothing else here does

    lines = ["| architecture | models | limits |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {family.models} | {family.limits} |" for name, family in sorted(FAMILIES.items())]
    return "\n".join(lines)


GENERATED: Mapping[str, Callable[[], str]] = {
    "policies": policies_markdown,
    "models": models_markdown,
    "sequence-states": lambda: diagram(SEQUENCE_NEXT),
    "block-states": lambda: diagram(BLOCK_NEXT),
}


def fill_in(text: str) -> str:
    """A document with everything between `<!-- generated: NAME -->` and `<!-- end -->` made anew."""

    def made(match: re.Match[str]) -> str:
        return f"{match[1]}\n{GENERATED[match[2]]()}\n{match[3]}"

    return re.sub(r"(<!-- generated: ([a-z-]+) -->).*?(<!-- end -->)", made, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(fill_in(page.read_text()))
