"""Two toy state groups that differ from paged attention as much as models do, and devices that check their content.

`WindowedGroup`: the first tokens (sinks) and the last ones, in a ring of blocks that is overwritten in place; a shared
block is copied before that. A prefix can be taken over where the sinks and the whole window before it are cached.
`RecurrentGroup`: one running state, which cannot go back, and a copy of it (checkpoint) every `block_tokens` tokens. A
prefix can be taken over at a checkpoint; its state is copied into the sequence's own block with the first growth.

The stores hold, for each slot, a digest of all tokens up to it: what a device would have to have there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from penstock.cache.blocks import BlockPool
from penstock.cache.groups import Growth
from penstock.cache.prefix import KeyChain, PrefixIndex
from penstock.core.executor import StateKind, StateSpec
from penstock.core.view import RetainPolicy

NOTHING = Growth(0, ())


@dataclass
class Ring:
    """Entry e of a sequence's table has room for block number `holds[e]` of its tokens; None: nothing usable."""

    table: list[int]
    holds: list[int | None]
    end: int  # block numbers below it have had room


class WindowedGroup:
    """Sinks and a ring; see the top of the file."""

    def __init__(self, spec: StateSpec, n_blocks: int, retain: RetainPolicy) -> None:
        assert spec.window_tokens is not None
        self.spec = spec
        self.index = PrefixIndex()
        self.pool = BlockPool(n_blocks, retain, on_evict=self.index.forget)
        self.n_sinks, self.n_ring = ring_shape(spec)
        self._rings: dict[str, Ring] = {}

    def blocks_for(self, tokens: int) -> int:
        return min(-(-tokens // self.spec.block_tokens), self.n_sinks + self.n_ring)

    def held_blocks(self, seq_id: str) -> int:
        return len(self._held(self._rings[seq_id])) if seq_id in self._rings else 0

    def capacity_tokens(self, seq_id: str) -> int | None:
        return self._rings[seq_id].end * self.spec.block_tokens

    def needed(self, tokens: int) -> list[int]:
        """Numbers of the blocks that the token behind `tokens` tokens reads."""
        return needed_blocks(self.spec, tokens)

    def longest_hit(self, chain: KeyChain, limit_tokens: int) -> int:
        size = self.spec.block_tokens
        for k in range(min(limit_tokens // size, chain.full_blocks), 0, -1):
            if all(self.index.find(chain.key(block)) is not None for block in self.needed(k * size)):
                return k * size
        return 0

    def start(self, seq_id: str, chain: KeyChain, hit_tokens: int) -> tuple[int, ...]:
        end = hit_tokens // self.spec.block_tokens
        found = {block: self.index.find(chain.key(block)) for block in self.needed(hit_tokens)}
        return self._begin(seq_id, end, {block: at for block, at in found.items() if at is not None})

    def _begin(self, seq_id: str, end: int, shared: dict[int, int]) -> tuple[int, ...]:
        """A table that shares these blocks (by number); the holes between them are never read."""
        filler = next(iter(shared.values()), 0)
        ring = Ring([filler] * min(end, self.n_sinks + self.n_ring), [None] * min(end, self.n_sinks + self.n_ring), end)
        for number, block in shared.items():
            self.pool.share(block)
            at = entry_of(self.spec, number)
            ring.table[at], ring.holds[at] = block, number
        self._rings[seq_id] = ring
        return tuple(ring.table)

    def longest_fork(self, parent_id: str, limit_tokens: int) -> int:
        has = set(self._rings[parent_id].holds)
        return next(n for n in range(limit_tokens, -1, -1) if has.issuperset(self.needed(n)))

    def fork_blocks(self, parent_id: str, tokens: int) -> int:
        return 1 if tokens % self.spec.block_tokens else 0

    def fork(self, parent_id: str, seq_id: str, tokens: int) -> Growth:
        parent = self._rings[parent_id]
        at = {number: parent.table[e] for e, number in enumerate(parent.holds) if number is not None}
        whole, rest = divmod(tokens, self.spec.block_tokens)
        self._begin(seq_id, whole, {number: at[number] for number in self.needed(tokens) if number < whole})
        if not rest:
            return Growth(0, tuple(self._rings[seq_id].table))
        growth = self.grow(seq_id, tokens)
        assert growth is not None
        assert not growth.copies
        return Growth(0, growth.blocks, ((at[whole], self._rings[seq_id].table[entry_of(self.spec, whole)]),))

    def _changes(self, ring: Ring, to_tokens: int) -> dict[int, int]:
        """Entry -> number of the block that it will have room for."""
        return {entry_of(self.spec, n): n for n in range(ring.end, -(-to_tokens // self.spec.block_tokens))}

    def _must_replace(self, ring: Ring, at: int) -> bool:
        return at >= len(ring.table) or ring.holds[at] is None or self.pool.users(ring.table[at]) > 1

    def missing_blocks(self, seq_id: str, to_tokens: int) -> int:
        ring = self._rings[seq_id]
        return sum(self._must_replace(ring, at) for at in self._changes(ring, to_tokens))

    def grow(self, seq_id: str, to_tokens: int) -> Growth | None:
        ring = self._rings[seq_id]
        changes = self._changes(ring, to_tokens)
        fresh = self.pool.try_take(self.missing_blocks(seq_id, to_tokens))
        if fresh is None:
            return None
        left, copies = list(fresh), []
        for at, number in sorted(changes.items()):
            if at >= len(ring.table):
                ring.table.append(left.pop())
                ring.holds.append(None)
            elif self._must_replace(ring, at):
                old, ring.table[at] = ring.table[at], left.pop()
                if ring.holds[at] is not None:
                    copies.append((old, ring.table[at]))  # a token of this very step may still read it
                    self.pool.give_back(old, keep=True, now_s=0.0)  # others have it: it stays active
            elif self.index.knows(ring.table[at]):
                self.index.forget(ring.table[at])
            ring.holds[at] = number
        ring.end = max([ring.end, *(number + 1 for number in changes.values())])
        return Growth(0, tuple(ring.table), tuple(copies)) if fresh else NOTHING

    def note_full(self, seq_id: str, chain: KeyChain, tokens: int) -> None:
        ring = self._rings[seq_id]
        for block, number in zip(ring.table, ring.holds, strict=True):
            if number is not None and (number + 1) * self.spec.block_tokens <= tokens:
                self.index.put(chain.key(number), block)

    def release(self, seq_id: str, now_s: float, pin_until_s: float | None = None) -> None:
        for block in reversed(self._held(self._rings.pop(seq_id))):
            self.pool.give_back(block, keep=self.index.knows(block), now_s=now_s, pin_until_s=pin_until_s)

    def _held(self, ring: Ring) -> list[int]:
        return [block for block, number in zip(ring.table, ring.holds, strict=True) if number is not None]

    def audit(self) -> None:
        self.pool.audit(self._held(ring) for ring in self._rings.values())


def ring_shape(spec: StateSpec) -> tuple[int, int]:
    """Blocks of the sinks, and of the ring: the window, and the block that is being filled."""
    assert spec.window_tokens is not None
    return -(-spec.sink_tokens // spec.block_tokens), -(-spec.window_tokens // spec.block_tokens) + 1


def entry_of(spec: StateSpec, number: int) -> int:
    """Where in a table block number `number` of a sequence has its place."""
    n_sinks, n_ring = ring_shape(spec)
    return number if number < n_sinks else n_sinks + (number - n_sinks) % n_ring


def needed_blocks(spec: StateSpec, tokens: int) -> list[int]:
    assert spec.window_tokens is not None
    size = spec.block_tokens
    end, first = -(-tokens // size), max(0, tokens - spec.window_tokens + 1) // size
    return sorted({*range(min(ring_shape(spec)[0], end)), *range(first, end)})


@dataclass
class Life:
    """What one sequence has of a recurrent group: its state once it grew, before that the one it starts from."""

    running: int | None = None
    source: int | None = None
    checkpoints: dict[int, int] = field(default_factory=dict)  # k: the state behind k * block_tokens tokens
    noted: set[int] = field(default_factory=set)
    top: int = 0  # checkpoints up to here have had room, or lie before the start

    def held(self) -> list[int]:
        return [block for block in (self.running, self.source) if block is not None] + list(self.checkpoints.values())


class RecurrentGroup:
    """A state of constant size, with checkpoints; see the top of the file. Entry k of a table is checkpoint k."""

    def __init__(self, spec: StateSpec, n_blocks: int, retain: RetainPolicy, key_tokens: int) -> None:
        assert spec.block_tokens % key_tokens == 0, "a checkpoint lies at the end of a link of the chain"
        self.spec = spec
        self.index = PrefixIndex()
        self.pool = BlockPool(n_blocks, retain, on_evict=self.index.forget)
        self._links = spec.block_tokens // key_tokens
        self._lives: dict[str, Life] = {}

    def _find(self, chain: KeyChain, k: int) -> int | None:
        return self.index.find(chain.key(k * self._links - 1))

    def blocks_for(self, tokens: int) -> int:
        return 1 + tokens // self.spec.block_tokens

    def held_blocks(self, seq_id: str) -> int:
        return len(self._lives[seq_id].held()) if seq_id in self._lives else 0

    def capacity_tokens(self, seq_id: str) -> int | None:
        life = self._lives[seq_id]
        return (life.top + 1) * self.spec.block_tokens - 1 if life.running is not None else 0

    def longest_hit(self, chain: KeyChain, limit_tokens: int) -> int:
        most = min(limit_tokens // self.spec.block_tokens, chain.full_blocks // self._links)
        found = (k for k in range(most, 0, -1) if self._find(chain, k) is not None)
        return next(found, 0) * self.spec.block_tokens

    def start(self, seq_id: str, chain: KeyChain, hit_tokens: int) -> tuple[int, ...]:
        k = hit_tokens // self.spec.block_tokens
        return self._begin(seq_id, k, self._find(chain, k) if k else None)

    def _begin(self, seq_id: str, k: int, source: int | None) -> tuple[int, ...]:
        self._lives[seq_id] = Life(source=source, top=k)
        if source is None:
            return ()
        self.pool.share(source)
        return (source,) * (k + 1)

    def longest_fork(self, parent_id: str, limit_tokens: int) -> int:
        noted = self._lives[parent_id].noted
        most = limit_tokens // self.spec.block_tokens
        return next((k for k in range(most, 0, -1) if k in noted), 0) * self.spec.block_tokens

    def fork_blocks(self, parent_id: str, tokens: int) -> int:
        return 0

    def fork(self, parent_id: str, seq_id: str, tokens: int) -> Growth:
        k = tokens // self.spec.block_tokens
        return Growth(0, self._begin(seq_id, k, self._lives[parent_id].checkpoints[k] if k else None))

    def missing_blocks(self, seq_id: str, to_tokens: int) -> int:
        life = self._lives[seq_id]
        return (life.running is None) + max(0, to_tokens // self.spec.block_tokens - life.top)

    def grow(self, seq_id: str, to_tokens: int) -> Growth | None:
        life = self._lives[seq_id]
        fresh = self.pool.try_take(self.missing_blocks(seq_id, to_tokens))
        if fresh is None:
            return None
        left, copies, is_first = list(fresh), [], life.running is None
        hole = life.source
        if life.running is None:
            life.running = left.pop()
            if life.source is not None:
                copies.append((life.source, life.running))
                self.pool.give_back(life.source, keep=self.index.knows(life.source), now_s=0.0)
                life.source = None
        before, life.top = life.top, life.top + len(left)
        life.checkpoints |= dict(zip(range(before + 1, life.top + 1), left, strict=True))
        if is_first:  # the entries of checkpoints before the start are never written
            table = [life.running, *(life.running if hole is None else hole for _ in range(before)), *left]
            return Growth(0, tuple(table), tuple(copies))
        return Growth(before + 1, tuple(left))

    def note_full(self, seq_id: str, chain: KeyChain, tokens: int) -> None:
        life = self._lives[seq_id]
        for k, block in life.checkpoints.items():
            if k not in life.noted and k * self.spec.block_tokens <= tokens:
                self.index.put(chain.key(k * self._links - 1), block)
                life.noted.add(k)

    def release(self, seq_id: str, now_s: float, pin_until_s: float | None = None) -> None:
        for block in reversed(self._lives.pop(seq_id).held()):
            self.pool.give_back(block, keep=self.index.knows(block), now_s=now_s, pin_until_s=pin_until_s)

    def audit(self) -> None:
        self.pool.audit(life.held() for life in self._lives.values())


# --- what a device has in its blocks ----------------------------------------------------------------------------------


def states_of(tokens: Sequence[int], salt: str = "") -> list[int]:
    """Digest n stands for everything up to token n: what the state behind n tokens depends on."""
    states = [hash(salt)]
    for token in tokens:
        states.append(hash((states[-1], token)))
    return states


class Store(Protocol):
    """The content of one group's blocks."""

    def copy(self, source: int, target: int) -> None: ...

    def check(self, table: Sequence[int], states: Sequence[int], tokens: int) -> None:
        """Assert that the table has all that the token behind `tokens` tokens reads."""
        ...

    def write(self, table: Sequence[int], states: Sequence[int], start: int, stop: int) -> None:
        """Compute tokens [start, stop)."""
        ...


class SlotStore:
    """A slot per token: paged, or windowed if the spec has a window."""

    def __init__(self, spec: StateSpec) -> None:
        self.spec = spec
        self.slots: dict[tuple[int, int], int] = {}

    def copy(self, source: int, target: int) -> None:
        for offset in range(self.spec.block_tokens):
            self.slots[target, offset] = self.slots.get((source, offset), 0)

    def _slot(self, table: Sequence[int], position: int) -> tuple[int, int]:
        number, offset = divmod(position, self.spec.block_tokens)
        return table[entry_of(self.spec, number) if self.spec.window_tokens else number], offset

    def check(self, table: Sequence[int], states: Sequence[int], tokens: int) -> None:
        window, sinks = self.spec.window_tokens, self.spec.sink_tokens
        for position in range(tokens):
            if window is None or position < sinks or position > tokens - window:
                have = self.slots.get(self._slot(table, position))
                assert have == states[position + 1], f"{self.spec.name}: position {position} of {tokens} is not there"

    def write(self, table: Sequence[int], states: Sequence[int], start: int, stop: int) -> None:
        n_sinks, n_ring = ring_shape(self.spec) if self.spec.window_tokens else (0, 0)
        last_number = (stop - 1) // self.spec.block_tokens
        for position in range(start, stop):
            number = position // self.spec.block_tokens
            if not n_ring or number < n_sinks or number > last_number - n_ring:
                self.slots[self._slot(table, position)] = states[position + 1]


class StateStore:
    """One state per block."""

    def __init__(self, spec: StateSpec) -> None:
        self.spec = spec
        self.states: dict[int, int] = {}

    def copy(self, source: int, target: int) -> None:
        self.states[target] = self.states.get(source, 0)

    def check(self, table: Sequence[int], states: Sequence[int], tokens: int) -> None:
        if tokens:
            assert self.states.get(table[0]) == states[tokens], (
                f"{self.spec.name}: not the state behind {tokens} tokens"
            )

    def write(self, table: Sequence[int], states: Sequence[int], start: int, stop: int) -> None:
        every = self.spec.block_tokens
        for k in range(start // every + 1, stop // every + 1):
            self.states[table[k]] = states[k * every]
        self.states[table[0]] = states[stop]


# --- a model of three kinds -------------------------------------------------------------------------------------------

KEY_TOKENS = 4
PAGED = StateSpec(name="paged", kind=StateKind.PAGED, layers=(0,), block_tokens=KEY_TOKENS, block_bytes=64)
WINDOWED = StateSpec(
    name="windowed", kind=StateKind.WINDOWED, layers=(1,), block_tokens=KEY_TOKENS, block_bytes=64,
    window_tokens=6, sink_tokens=2,
)  # fmt: skip
RECURRENT = StateSpec(name="recurrent", kind=StateKind.RECURRENT, layers=(2,), block_tokens=8, block_bytes=64)


def store_of(spec: StateSpec) -> Store:
    return StateStore(spec) if spec.kind is StateKind.RECURRENT else SlotStore(spec)
