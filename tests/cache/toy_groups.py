"""A toy state group that differs from attention as much as models do, and devices that check the content of any group.

`RecurrentGroup`: one running state, which cannot go back, and a copy of it (checkpoint) every `block_tokens` tokens. A
prefix can be taken over at a checkpoint; its state is copied into the sequence's own block with the first growth.

The stores hold, for each slot, a digest of all tokens up to it: what a device would have to have there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from penstock.cache.blocks import BlockPool
from penstock.cache.groups import Growth, Has, Parcel
from penstock.cache.prefix import KeyChain, PrefixIndex
from penstock.core.executor import StateKind, StateSpec
from penstock.core.view import RetainPolicy


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
        return self.index.find(self._key(chain, k))

    def _key(self, chain: KeyChain, k: int) -> bytes:
        return chain.key(k * self._links - 1)

    def hit_keys(self, chain: KeyChain, hit_tokens: int) -> list[bytes]:
        k = hit_tokens // self.spec.block_tokens
        return [self._key(chain, k)] if k else []

    @property
    def chunk_tokens(self) -> int | None:
        return None

    def blocks_for(self, tokens: int) -> int:
        return 1 + tokens // self.spec.block_tokens

    def held_blocks(self, seq_id: str) -> int:
        return len(self._lives[seq_id].held()) if seq_id in self._lives else 0

    def capacity_tokens(self, seq_id: str) -> int | None:
        life = self._lives[seq_id]
        return (life.top + 1) * self.spec.block_tokens - 1 if life.running is not None else 0

    def longest_hit(self, chain: KeyChain, limit_tokens: int, has: Has) -> int:
        most = min(limit_tokens // self.spec.block_tokens, chain.full_blocks // self._links)
        found = (k for k in range(most, 0, -1) if has(self._key(chain, k)))
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

    def trim(self, seq_id: str, computed_tokens: int, now_s: float) -> None:
        """The running state is all that is read."""

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

    def pack(self, seq_id: str, chain: KeyChain, tokens: int) -> Parcel:
        life = self._lives[seq_id]
        written = {k: block for k, block in life.checkpoints.items() if k * self.spec.block_tokens <= tokens}
        blocks, keys = list(written.values()), [self._key(chain, k) if k in life.noted else None for k in written]
        if life.running is not None:
            blocks, keys = [life.running, *blocks], [None, *keys]
        elif life.source is not None:
            blocks, keys = [life.source], [self._key(chain, life.top)]
        noted = life.noted & set(written)
        layout = Life(life.running, life.source, dict.fromkeys(written, -1), noted, tokens // self.spec.block_tokens)
        return Parcel(tuple(blocks), tuple(keys), layout)

    def unpack(self, seq_id: str, parcel: Parcel, blocks: Sequence[int]) -> tuple[int, ...]:
        was = parcel.layout
        assert isinstance(was, Life)
        if was.running is None:
            source = blocks[0] if blocks else None
            self._lives[seq_id] = Life(source=source, top=was.top)
            return () if source is None else (source,) * (was.top + 1)
        checkpoints = dict(zip(was.checkpoints, blocks[1:], strict=True))
        self._lives[seq_id] = Life(blocks[0], None, checkpoints, set(was.noted), was.top)
        return (blocks[0], *(checkpoints.get(k, blocks[0]) for k in range(1, was.top + 1)))

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

    def take(self, block: int, other: Store, source: int) -> None:
        """The content of a block of another store of the same kind."""
        ...

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
        self.take(target, self, source)

    def take(self, block: int, other: Store, source: int) -> None:
        assert isinstance(other, SlotStore)
        for offset in range(self.spec.block_tokens):
            self.slots[block, offset] = other.slots.get((source, offset), 0)

    def _slot(self, table: Sequence[int], position: int) -> tuple[int, int]:
        number, offset = divmod(position, self.spec.block_tokens)
        return table[number], offset

    def check(self, table: Sequence[int], states: Sequence[int], tokens: int) -> None:
        window, sinks = self.spec.window_tokens, self.spec.sink_tokens
        for position in range(tokens):
            if window is None or position < sinks or position > tokens - window:
                have = self.slots.get(self._slot(table, position))
                assert have == states[position + 1], f"{self.spec.name}: position {position} of {tokens} is not there"

    def write(self, table: Sequence[int], states: Sequence[int], start: int, stop: int) -> None:
        for position in range(start, stop):
            self.slots[self._slot(table, position)] = states[position + 1]


class StateStore:
    """One state per block."""

    def __init__(self, spec: StateSpec) -> None:
        self.spec = spec
        self.states: dict[int, int] = {}

    def copy(self, source: int, target: int) -> None:
        self.take(target, self, source)

    def take(self, block: int, other: Store, source: int) -> None:
        assert isinstance(other, StateStore)
        self.states[block] = other.states.get(source, 0)

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
    window_tokens=6, sink_tokens=2, chunk_tokens=12,
)  # fmt: skip
RECURRENT = StateSpec(name="recurrent", kind=StateKind.RECURRENT, layers=(2,), block_tokens=8, block_bytes=64)


def store_of(spec: StateSpec) -> Store:
    return StateStore(spec) if spec.kind is StateKind.RECURRENT else SlotStore(spec)
