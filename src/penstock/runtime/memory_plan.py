"""How much state fits: from bytes to blocks, said in words before anything is allocated. No torch here."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from penstock.core.errors import ConfigError
from penstock.core.executor import ModelFacts, StateSpec

KIB, MIB, GIB = 2**10, 2**20, 2**30
UNIT_BYTES = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for suffix, base in (("", 1000), ("b", 1000), ("i", 1024), ("ib", 1024))
}
SHORTEST_USEFUL_TOKENS = 256  # a short question and a short answer; less memory than that serves nobody
SHOWN_TOKENS = 2048
ENDLESS_TOKENS = 2**40  # more than any model's context
CPU_MOST_BYTES = 4 * GIB
CPU_FRAC = 0.25  # a laptop has other things to hold
USEFUL_FILLS = 4
DEVICE_FRAC = 0.85  # the rest is for activations and logits


def parse_bytes(text: str | int) -> int:
    """Bytes from "4GiB", "512MiB", "2G", "1.5 GB" or a plain number. G is 10^9, Gi and GiB are 2^30; case is free.

    Raises ConfigError for anything else.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", str(text).strip().lower())
    if match is None or match[2] not in UNIT_BYTES:
        raise ConfigError(f"{text!r} is no amount of memory: write a number and a unit, such as 4GiB, 512MiB or 2G")
    return int(float(match[1]) * UNIT_BYTES[match[2]]) if "." in match[1] else int(match[1]) * UNIT_BYTES[match[2]]


def show_bytes(n_bytes: int) -> str:
    """With the unit that leaves the number between 1 and 1024."""
    for unit_bytes, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if n_bytes >= unit_bytes:
            return f"{n_bytes / unit_bytes:.2f} {name}"
    return f"{n_bytes} B"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Blocks of the KV pools, one pool per state group, and what they are good for.

    n_ranks: how many run the model together; weights and blocks are those of each, and they serve the same sequences.
    """

    weight_bytes: int
    states: tuple[StateSpec, ...]
    n_blocks: tuple[int, ...]
    max_model_tokens: int
    max_rows: int
    n_host_blocks: tuple[int, ...] = ()
    n_ranks: int = 1

    @property
    def kv_bytes(self) -> int:
        return _bytes_of(self.states, self.n_blocks)

    @property
    def host_kv_bytes(self) -> int:
        return _bytes_of(self.states, self.n_host_blocks) if self.n_host_blocks else 0

    @property
    def longest_tokens(self) -> int:
        """Prompt and outputs of the longest sequence that can run."""
        return min(self.max_model_tokens, *(longest_tokens(s, n) for s, n in self._pools))

    @property
    def longest_prompt_tokens(self) -> int:
        """One place is left for an output."""
        return self.longest_tokens - 1

    @property
    def _host_share(self) -> str:
        return f"{self.host_kv_bytes / self.kv_bytes:.0%} of the KV pool, for what is swapped or evicted"

    @property
    def _pools(self) -> Iterable[tuple[StateSpec, int]]:
        return zip(self.states, self.n_blocks, strict=True)

    def concurrency(self, tokens: int) -> int:
        """How many sequences of `tokens` tokens decode at once."""
        return min(self.max_rows, *(n // spec.decoding_blocks_for(tokens) for spec, n in self._pools))

    def describe(self) -> tuple[str, ...]:
        """Lines for a person."""
        shown_tokens = min(SHOWN_TOKENS, self.longest_tokens)
        limit = "the model's context" if self.longest_tokens == self.max_model_tokens else "the KV pool"
        return (
            f"weights: {show_bytes(self.weight_bytes)}{_on_each(self.n_ranks)}",
            f"KV pool: {show_bytes(self.kv_bytes)}{_on_each(self.n_ranks)}, "
            + " and ".join(_describe(spec, n) for spec, n in self._pools),
            *([f"host tier: {show_bytes(self.host_kv_bytes)}, {self._host_share}"] if self.n_host_blocks else []),
            f"longest prompt: {self.longest_prompt_tokens} tokens (limited by {limit})",
            f"at once: {self.concurrency(shown_tokens)} sequences of {shown_tokens} tokens (at most {self.max_rows})",
        )


def _on_each(n_ranks: int) -> str:
    return f" on each of {n_ranks} ranks" if n_ranks > 1 else ""


def _describe(spec: StateSpec, n_blocks: int) -> str:
    blocks = f"{n_blocks} blocks of {spec.block_tokens} tokens"
    if spec.window_tokens is None:
        return blocks
    sinks = f"the first {spec.sink_tokens} and " if spec.sink_tokens else ""
    return f"{blocks} ({len(spec.layers)} layers that keep {sinks}the last {spec.window_tokens} tokens)"


def longest_tokens(spec: StateSpec, n_blocks: int) -> int:
    """The longest sequence that a pool holds alone."""
    is_endless = spec.window_tokens is not None and n_blocks >= spec.decoding_blocks_for(ENDLESS_TOKENS)
    return ENDLESS_TOKENS if is_endless else n_blocks * spec.block_tokens


def plan_memory(
    facts: ModelFacts,
    *,
    free_bytes: int,
    default_kv_bytes: int,
    kv_bytes: int | None,
    max_rows: int,
    n_ranks: int = 1,
) -> MemoryPlan:
    """Divide KV memory into blocks. kv_bytes None: the default. All bytes are those of one rank.

    Raises ConfigError if more is asked than is free, or if not even one short sequence fits.
    """
    asked_bytes = default_kv_bytes if kv_bytes is None else kv_bytes
    asked = f"{show_bytes(asked_bytes)} of KV memory{_on_each(n_ranks)}"
    if asked_bytes > free_bytes:
        raise ConfigError(
            f"{asked} do not fit: {show_bytes(free_bytes)} are free beside the weights "
            f"({show_bytes(facts.weight_bytes)}); ask for less"
        )
    shortest_tokens = min(SHORTEST_USEFUL_TOKENS, facts.max_model_tokens)
    least_bytes = _bytes_of(facts.states, _blocks_of_one(facts.states, shortest_tokens))
    if asked_bytes < least_bytes:
        block_bytes = sum(spec.block_bytes for spec in facts.states)
        raise ConfigError(
            f"{asked} hold {asked_bytes // block_bytes * facts.states[0].block_tokens} "
            f"tokens of {facts.name}, less than one sequence of {shortest_tokens}; give at least "
            f"{show_bytes(least_bytes * n_ranks)}"
        )
    return MemoryPlan(
        weight_bytes=facts.weight_bytes,
        states=facts.states,
        n_blocks=_divide(facts.states, asked_bytes, facts.max_model_tokens),
        max_model_tokens=facts.max_model_tokens,
        max_rows=max_rows,
        n_ranks=n_ranks,
    )


def with_host_tier(plan: MemoryPlan, host_kv_bytes: int, free_bytes: int) -> MemoryPlan:
    """The plan with host blocks for every pool, in proportion to the pool; 0 bytes: without any. All of one rank.

    Raises ConfigError if more is asked than is free, or too little for one block.
    """
    if not host_kv_bytes:
        return plan
    asked = f"{show_bytes(host_kv_bytes)} of --host-kv-memory{_on_each(plan.n_ranks)}"
    if host_kv_bytes > free_bytes:
        raise ConfigError(
            f"{asked} do not fit: {show_bytes(max(0, free_bytes))} of host "
            "memory are free beside the rest; ask for less"
        )
    n_host_blocks = tuple(n * host_kv_bytes // plan.kv_bytes for n in plan.n_blocks)
    if min(n_host_blocks) < 1:
        raise ConfigError(
            f"{asked} hold no block of {plan.states[0].block_tokens} tokens; "
            f"give at least {show_bytes(-(-plan.kv_bytes // min(plan.n_blocks)) * plan.n_ranks)}, or 0 for no host tier"
        )
    return replace(plan, n_host_blocks=n_host_blocks)


def _divide(states: tuple[StateSpec, ...], kv_bytes: int, max_model_tokens: int) -> tuple[int, ...]:
    """Blocks of each pool: for as many equal sequences as there is room for, one of which prefills in whole chunks.

    The sequences are of `SHOWN_TOKENS` tokens. Where not even one of these fits, one as long as possible does.
    """
    shown_tokens = min(SHOWN_TOKENS, max_model_tokens)
    one = _blocks_of_one(states, shown_tokens)
    more_bytes = _bytes_of(states, tuple(spec.decoding_blocks_for(shown_tokens) for spec in states))
    n_more = (kv_bytes - _bytes_of(states, one)) / more_bytes
    if n_more < 0:  # the first number of tokens that does not fit, less one
        tokens = bisect_right(range(shown_tokens), kv_bytes, key=lambda n: _bytes_of(states, _blocks_of_one(states, n)))
        one, n_more = _blocks_of_one(states, tokens - 1), 0.0
    blocks = tuple(
        n + int(n_more * spec.decoding_blocks_for(shown_tokens)) for spec, n in zip(states, one, strict=True)
    )
    # what rounding left goes to the largest pool
    left_bytes = kv_bytes - _bytes_of(states, blocks)
    largest = max(range(len(states)), key=lambda g: blocks[g] * states[g].block_bytes)
    return tuple(n + (left_bytes // states[g].block_bytes if g == largest else 0) for g, n in enumerate(blocks))


def _blocks_of_one(states: tuple[StateSpec, ...], tokens: int) -> tuple[int, ...]:
    return tuple(spec.blocks_for(tokens) for spec in states)


def _bytes_of(states: tuple[StateSpec, ...], n_blocks: tuple[int, ...]) -> int:
    return sum(n * spec.block_bytes for n, spec in zip(n_blocks, states, strict=True))


def default_kv_bytes(free_bytes: int, *, is_cpu: bool, useful_bytes: int) -> int:
    """What to take when nobody said. useful_bytes: see `useful_kv_bytes`; a small model needs no whole GPU."""
    if is_cpu:
        return min(CPU_MOST_BYTES, int(CPU_FRAC * free_bytes))
    return min(int(DEVICE_FRAC * free_bytes), useful_bytes)


def useful_kv_bytes(facts: ModelFacts, max_rows: int) -> int:
    """Every row at the longest that the model takes, `USEFUL_FILLS` times: beyond the first for prefixes."""
    return (
        USEFUL_FILLS
        * max_rows
        * sum(-(-facts.max_model_tokens // spec.block_tokens) * spec.block_bytes for spec in facts.states)
    )


def free_ram_bytes(root: Path = Path("/")) -> int | None:
    """RAM that a new process could take, within the limit of a container; None where the system does not say."""
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    available = [int(line.split()[1]) * KIB for line in lines if line.startswith("MemAvailable:")]
    return min((*available, *_container_bytes(root)), default=None)


def _container_bytes(root: Path) -> Iterable[int]:
    """What a control group of version 2 leaves, if there is one."""
    group = root / "sys/fs/cgroup"
    try:
        limit, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return ()
    return () if limit == "max" else (max(0, int(limit) - int(used)),)
