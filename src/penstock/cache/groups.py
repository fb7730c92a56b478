"""State groups: how the state of some layers is laid out in blocks. `Memory` asks all groups of a model alike.

The interface is what admission, prefix hits, forks and preemption need to know; how a group keeps its promise (all
tokens, a window with sinks, a constant state with checkpoints) is its own business. Tokens are counted from the start
of the sequence, ranges are half open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from penstock.cache.blocks import BlockPool
from penstock.cache.prefix import KeyChain, PrefixIndex
from penstock.core.executor import StateSpec
from penstock.core.view import RetainPolicy


@dataclass(frozen=True, slots=True)
class Growth:
    """Entries [at, at + len(blocks)) of a table become `blocks`; (source, target) pairs are copied first."""

    at: int
    blocks: tuple[int, ...]
    copies: tuple[tuple[int, int], ...] = ()


NO_GROWTH = Growth(0, ())


@dataclass(frozen=True, slots=True)
class Parcel:
    """The state of a sequence behind some tokens, ready to lie somewhere else.

    blocks: those that hold it. keys: of their content, where it can be found again. layout: what the group needs to put
    other blocks with the same content in their places.
    """

    blocks: tuple[int, ...]
    keys: tuple[bytes | None, ...]
    layout: object


Has = Callable[[bytes], bool]  # is the content with this key there?


class StateGroup(Protocol):
    """The state of one group of layers, for all sequences of an instance."""

    @property
    def spec(self) -> StateSpec: ...

    @property
    def pool(self) -> BlockPool: ...

    @property
    def index(self) -> PrefixIndex:
        """Which block of the pool has which content."""
        ...

    @property
    def chunk_tokens(self) -> int | None:
        """The most tokens of one sequence that a step may take; None: any number."""
        ...

    def blocks_for(self, tokens: int) -> int:
        """The most blocks that a sequence holds until it has so many tokens."""
        ...

    def longest_hit(self, chain: KeyChain, limit_tokens: int, has: Has) -> int:
        """The most tokens, at most `limit_tokens`, behind which the sequence could go on from what `has` says is
        there.
        """
        ...

    def hit_keys(self, chain: KeyChain, hit_tokens: int) -> Sequence[bytes]:
        """Keys of all blocks that `start` shares."""
        ...

    def missing_blocks(self, seq_id: str, to_tokens: int) -> int:
        """Blocks that `grow` would take."""
        ...

    def capacity_tokens(self, seq_id: str) -> int | None:
        """Tokens that fit without `grow`; None: any number."""
        ...

    def start(self, seq_id: str, chain: KeyChain, hit_tokens: int) -> tuple[int, ...]:
        """A table whose first `hit_tokens` are cached state. `hit_tokens` is an answer of `longest_hit`, and all of
        `hit_keys` is in the pool.
        """
        ...

    def longest_fork(self, parent_id: str, limit_tokens: int) -> int:
        """The most tokens, at most `limit_tokens`, behind which the parent's state is still there."""
        ...

    def fork_blocks(self, parent_id: str, tokens: int) -> int:
        """Blocks that `fork` would take."""
        ...

    def fork(self, parent_id: str, seq_id: str, tokens: int) -> Growth:
        """A table with the parent's state behind `tokens` tokens; writing into it leaves the parent as it is.

        `tokens` is an answer of `longest_fork`, and `fork_blocks` are available.
        """
        ...

    def trim(self, seq_id: str, computed_tokens: int, now_s: float) -> None:
        """Give back what no token from `computed_tokens` on reads: those before it went through every layer."""
        ...

    def grow(self, seq_id: str, to_tokens: int) -> Growth | None:
        """Make room for tokens [0, to_tokens). None, and nothing changed, if blocks are short."""
        ...

    def note_full(self, seq_id: str, chain: KeyChain, tokens: int) -> None:
        """The state behind every whole block of the first `tokens` tokens is (or will be, in order) written: it can
        be found from now on."""
        ...

    def release(self, seq_id: str, now_s: float, pin_until_s: float | None = None) -> None:
        """The sequence holds nothing any more; what can be found again stays cached."""
        ...

    def pack(self, seq_id: str, chain: KeyChain, tokens: int) -> Parcel:
        """The state of a sequence behind `tokens` tokens, all that it has; the sequence keeps it."""
        ...

    def unpack(self, seq_id: str, parcel: Parcel, blocks: Sequence[int]) -> tuple[int, ...]:
        """A table that goes on from the content of a parcel, which lies in these blocks, already taken for it."""
        ...

    def held_blocks(self, seq_id: str) -> int: ...

    def audit(self) -> None:
        """Check conservation; raises AssertionError."""
        ...


class PagedGroup:
    """Every token's keys and values, `block_tokens` to a block: full attention."""

    def __init__(self, spec: StateSpec, n_blocks: int, retain: RetainPolicy) -> None:
        self.spec = spec
        self.index = PrefixIndex()
        self.pool = BlockPool(n_blocks, retain, on_evict=self.index.forget)
        self._tables: dict[str, list[int]] = {}
        self._noted: dict[str, int] = {}  # blocks of a table that `note_full` has handled

    @property
    def chunk_tokens(self) -> int | None:
        return None

    def blocks_for(self, tokens: int) -> int:
        return self.spec.blocks_for(tokens)

    def held_blocks(self, seq_id: str) -> int:
        return len(self._tables.get(seq_id, ()))

    def capacity_tokens(self, seq_id: str) -> int | None:
        return len(self._tables[seq_id]) * self.spec.block_tokens

    def missing_blocks(self, seq_id: str, to_tokens: int) -> int:
        return max(0, self.blocks_for(to_tokens) - self.held_blocks(seq_id))

    def longest_hit(self, chain: KeyChain, limit_tokens: int, has: Has) -> int:
        limit_blocks = min(limit_tokens // self.spec.block_tokens, chain.full_blocks)
        hit = 0
        while hit < limit_blocks and has(chain.key(hit)):
            hit += 1
        return hit * self.spec.block_tokens

    def hit_keys(self, chain: KeyChain, hit_tokens: int) -> Sequence[bytes]:
        return [chain.key(k) for k in range(hit_tokens // self.spec.block_tokens)]

    def start(self, seq_id: str, chain: KeyChain, hit_tokens: int) -> tuple[int, ...]:
        assert seq_id not in self._tables, f"{seq_id} has a table already"
        known, table = self.index.of(chain), []
        for k in range(hit_tokens // self.spec.block_tokens):
            block = known.get(chain.key(k))
            assert block is not None, f"{seq_id}: block {k} of its prefix hit is gone"
            table.append(block)
        for block in table:
            self.pool.share(block)
        self._tables[seq_id] = table
        self._noted[seq_id] = len(table)
        return tuple(table)

    def longest_fork(self, parent_id: str, limit_tokens: int) -> int:
        return limit_tokens  # every token's state stays

    def fork_blocks(self, parent_id: str, tokens: int) -> int:
        return 1 if tokens % self.spec.block_tokens else 0

    def fork(self, parent_id: str, seq_id: str, tokens: int) -> Growth:
        whole = tokens // self.spec.block_tokens
        shared = self._tables[parent_id][:whole]
        fresh = self.pool.try_take(self.fork_blocks(parent_id, tokens))
        assert fresh is not None, f"no block for the fork of {parent_id}"
        for block in shared:
            self.pool.share(block)
        self._tables[seq_id] = [*shared, *fresh]
        self._noted[seq_id] = min(whole, self._noted[parent_id])
        copies = tuple((self._tables[parent_id][whole], block) for block in fresh)
        return Growth(0, (*shared, *fresh), copies)

    def trim(self, seq_id: str, computed_tokens: int, now_s: float) -> None:
        """Every token reads all before it."""

    def grow(self, seq_id: str, to_tokens: int) -> Growth | None:
        table = self._tables[seq_id]
        fresh = self.pool.try_take(max(0, self.spec.blocks_for(to_tokens) - len(table)))
        if fresh is None:
            return None
        growth = Growth(len(table), fresh)
        table.extend(fresh)
        return growth

    def note_full(self, seq_id: str, chain: KeyChain, tokens: int) -> None:
        noted, whole = self._noted[seq_id], tokens // self.spec.block_tokens
        if whole > noted:
            self.index.note(chain, noted, self._tables[seq_id][noted:whole])
            self._noted[seq_id] = whole

    def release(self, seq_id: str, now_s: float, pin_until_s: float | None = None) -> None:
        del self._noted[seq_id]
        # From the end: the least recently used block is then the deepest one, and a prefix outlives its continuation.
        self.pool.give_back_all(reversed(self._tables.pop(seq_id)), self.index.knows, now_s, pin_until_s)

    def pack(self, seq_id: str, chain: KeyChain, tokens: int) -> Parcel:
        blocks = self._tables[seq_id][: self.blocks_for(tokens)]
        n_noted = min(self._noted[seq_id], tokens // self.spec.block_tokens)
        keys = tuple(chain.key(k) if k < n_noted else None for k in range(len(blocks)))
        return Parcel(tuple(blocks), keys, n_noted)

    def unpack(self, seq_id: str, parcel: Parcel, blocks: Sequence[int]) -> tuple[int, ...]:
        assert isinstance(parcel.layout, int)
        self._tables[seq_id] = list(blocks)
        self._noted[seq_id] = parcel.layout
        return tuple(blocks)

    def audit(self) -> None:
        self.pool.audit(self._all_tables())

    def _all_tables(self) -> Iterable[list[int]]:
        return self._tables.values()
