"""The state group of layers that read a window: the last tokens of a sequence, and perhaps its first ones (sinks).

Theory. Blocks are numbered along the sequence, and an entry of a table never changes what it stands for; a block that
lies behind the window of the next token is given back, and its entry is a hole that nobody reads. So the state of a
token depends on the tokens before it alone, not on how they were cut into chunks, and a block that went back may still
be found by another sequence whose window it lies in: prefix hits, forks and preemption are exact. A prefix is taken
over where the sinks and the whole window before its end are cached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penstock.cache.blocks import BlockPool
from penstock.cache.groups import NO_GROWTH, Growth, Has, Parcel
from penstock.cache.prefix import KeyChain, PrefixIndex
from penstock.core.executor import StateSpec
from penstock.core.view import RetainPolicy

HOLE = 0  # stands in a table where no block is held; no kernel follows it


class _Table:
    """What a sequence holds. blocks: by number, in order. behind: numbers from the sinks up to here went back.
    end: numbers below it have had room. noted: blocks that `note_full` has handled."""

    __slots__ = ("behind", "blocks", "end", "noted")

    def __init__(self, blocks: dict[int, int], behind: int, end: int, noted: int) -> None:
        self.blocks, self.behind, self.end, self.noted = blocks, behind, end, noted


class WindowedGroup:
    """Sinks and a window of every sequence, `block_tokens` tokens to a block.

    A pool with room for one window and more holds sequences of any length, and bounds their chunks. In a smaller one
    none can leave its window behind, and the longest is what fits.
    """

    def __init__(self, spec: StateSpec, n_blocks: int, retain: RetainPolicy) -> None:
        assert spec.window_tokens is not None
        assert spec.chunk_tokens is not None
        self.spec = spec
        self.index = PrefixIndex()
        self.pool = BlockPool(n_blocks, retain, on_evict=self.index.forget)
        self._window_tokens = spec.window_tokens
        room_tokens = (n_blocks - spec.sink_blocks - 1) * spec.block_tokens - spec.window_tokens + 1
        self._is_endless = room_tokens >= 1
        self._chunk_tokens = min(spec.chunk_tokens, room_tokens) if self._is_endless else spec.chunk_tokens
        self._tables: dict[str, _Table] = {}

    @property
    def chunk_tokens(self) -> int | None:
        """What the specification allows, or less: what there is room for when the sequence is alone."""
        return self._chunk_tokens

    def blocks_for(self, tokens: int) -> int:
        blocks = self.spec.blocks_for(tokens)
        return min(blocks, self.pool.n_blocks) if self._is_endless else blocks

    def held_blocks(self, seq_id: str) -> int:
        table = self._tables.get(seq_id)
        return 0 if table is None else len(table.blocks)

    def capacity_tokens(self, seq_id: str) -> int | None:
        return self._tables[seq_id].end * self.spec.block_tokens

    def missing_blocks(self, seq_id: str, to_tokens: int) -> int:
        return max(0, self._whole(to_tokens) - self._tables[seq_id].end)

    def _whole(self, tokens: int) -> int:
        return -(-tokens // self.spec.block_tokens)

    def _first_read(self, tokens: int) -> int:
        """Number of the oldest block in the window of the token behind `tokens` tokens."""
        return max(0, tokens - self._window_tokens + 1) // self.spec.block_tokens

    def _read(self, tokens: int) -> Sequence[int]:
        """Numbers of the blocks that the token behind `tokens` tokens reads, sinks first."""
        end = self._whole(tokens)
        sinks = range(min(self.spec.sink_blocks, end))
        return (*sinks, *range(max(len(sinks), self._first_read(tokens)), end))

    def longest_hit(self, chain: KeyChain, limit_tokens: int, has: Has) -> int:
        size = self.spec.block_tokens
        end = min(limit_tokens // size, chain.full_blocks)
        if self.spec.sink_blocks and end and not self._has_sinks(chain, end, has):
            return self._hit_within_sinks(chain, end, has) * size
        # from the end, so that one look at each block is enough: those behind a missing one are behind it for all
        run_stop = end  # blocks [k, run_stop) are cached
        for k in range(end - 1, -1, -1):
            if not has(chain.key(k)):
                run_stop = k
            elif k <= self._first_read(run_stop * size) or k < self.spec.sink_blocks:
                return run_stop * size
        return 0

    def _has_sinks(self, chain: KeyChain, end: int, has: Has) -> bool:
        return self._hit_within_sinks(chain, end, has) == min(self.spec.sink_blocks, end)

    def _hit_within_sinks(self, chain: KeyChain, end: int, has: Has) -> int:
        sinks = range(min(self.spec.sink_blocks, end))
        return next((k for k in sinks if not has(chain.key(k))), len(sinks))

    def hit_keys(self, chain: KeyChain, hit_tokens: int) -> Sequence[bytes]:
        return [chain.key(number) for number in self._read(hit_tokens)]

    def start(self, seq_id: str, chain: KeyChain, hit_tokens: int) -> tuple[int, ...]:
        known, shared = self.index.of(chain), {}
        for number in self._read(hit_tokens):
            block = known.get(chain.key(number))
            assert block is not None, f"{seq_id}: block {number} of its prefix hit is gone"
            shared[number] = block
        return self._begin(seq_id, shared, hit_tokens, hit_tokens // self.spec.block_tokens)

    def _begin(self, seq_id: str, shared: Mapping[int, int], tokens: int, noted: int) -> tuple[int, ...]:
        assert seq_id not in self._tables, f"{seq_id} has a table already"
        for block in shared.values():
            self.pool.share(block)
        end = tokens // self.spec.block_tokens
        behind = max(self.spec.sink_blocks, self._first_read(tokens))
        self._tables[seq_id] = _Table(dict(shared), behind, end, noted)
        return tuple(shared.get(number, HOLE) for number in range(end))

    def longest_fork(self, parent_id: str, limit_tokens: int) -> int:
        parent = self._tables[parent_id]
        if parent.behind <= max(self.spec.sink_blocks, self._first_read(limit_tokens)):
            return limit_tokens
        return min(limit_tokens, self.spec.sink_blocks * self.spec.block_tokens)  # all before that is kept for ever

    def fork_blocks(self, parent_id: str, tokens: int) -> int:
        return 1 if tokens % self.spec.block_tokens else 0

    def fork(self, parent_id: str, seq_id: str, tokens: int) -> Growth:
        parent = self._tables[parent_id]
        whole = tokens // self.spec.block_tokens
        fresh = self.pool.try_take(self.fork_blocks(parent_id, tokens))
        assert fresh is not None, f"no block for the fork of {parent_id}"
        shared = {number: parent.blocks[number] for number in self._read(tokens) if number < whole}
        entries = self._begin(seq_id, shared, tokens, min(whole, parent.noted))
        table = self._tables[seq_id]
        for block in fresh:
            table.blocks[whole] = block
            table.end = whole + 1
        copies = tuple((parent.blocks[whole], block) for block in fresh)
        return Growth(0, (*entries, *fresh), copies)

    def trim(self, seq_id: str, computed_tokens: int, now_s: float) -> None:
        table = self._tables[seq_id]
        stop = min(self._first_read(computed_tokens), table.end)
        self.pool.give_back_all([table.blocks.pop(n) for n in range(table.behind, stop)], self.index.knows, now_s)
        table.behind = max(table.behind, stop)

    def grow(self, seq_id: str, to_tokens: int) -> Growth | None:
        table = self._tables[seq_id]
        fresh = self.pool.try_take(self.missing_blocks(seq_id, to_tokens))
        if fresh is None:
            return None
        if not fresh:
            return NO_GROWTH
        growth = Growth(table.end, fresh)
        table.blocks |= zip(range(table.end, table.end + len(fresh)), fresh, strict=True)
        table.end += len(fresh)
        return growth

    def note_full(self, seq_id: str, chain: KeyChain, tokens: int) -> None:
        table = self._tables[seq_id]
        for number in range(table.noted, tokens // self.spec.block_tokens):
            block = table.blocks.get(number)
            if block is not None:
                self.index.note(chain, number, (block,))
            table.noted = number + 1

    def release(self, seq_id: str, now_s: float, pin_until_s: float | None = None) -> None:
        # from the end, as every group does: what is given back last is evicted last, and that should be the sinks
        self.pool.give_back_all(
            reversed(self._tables.pop(seq_id).blocks.values()), self.index.knows, now_s, pin_until_s
        )

    def pack(self, seq_id: str, chain: KeyChain, tokens: int) -> Parcel:
        table, end = self._tables[seq_id], self._whole(tokens)
        numbers = [number for number in table.blocks if number < end]
        keys = tuple(chain.key(n) if n < min(table.noted, tokens // self.spec.block_tokens) else None for n in numbers)
        layout = _Table(dict.fromkeys(numbers, HOLE), table.behind, end, min(table.noted, end))
        return Parcel(tuple(table.blocks[number] for number in numbers), keys, layout)

    def unpack(self, seq_id: str, parcel: Parcel, blocks: Sequence[int]) -> tuple[int, ...]:
        layout = parcel.layout
        assert isinstance(layout, _Table)
        held = dict(zip(layout.blocks, blocks, strict=True))
        self._tables[seq_id] = _Table(held, layout.behind, layout.end, layout.noted)
        return tuple(held.get(number, HOLE) for number in range(layout.end))

    def audit(self) -> None:
        self.pool.audit(table.blocks.values() for table in self._tables.values())
        for name, table in self._tables.items():
            within = {n for n in table.blocks if n < self.spec.sink_blocks or table.behind <= n < table.end}
            assert within == set(table.blocks), f"{name} holds blocks that lie behind its window"
