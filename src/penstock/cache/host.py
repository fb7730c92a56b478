"""The host tier: a second pool per state group, in host memory, for sequences that yield and prefixes that are evicted.

Theory. The books here say where content is *in the order of plans*: a block is there once its move is planned, and what
it was moved from may be used again at once, since executors make moves look as if each had happened at its place (see
`core.plan.BlockMove`). So no decision waits for a copy. What is under way is known all the same: a device block that
nobody needs is *moving* until its copy has landed, and is handed out last.

A host block is *active* while a swapped sequence, or a move of the plan being made, needs it, and *cached* while it
only holds a prefix; then it goes by the host pool's own retain policy. Content is found by the same keys as on the
device. What a sequence shares with others is copied once, and what the host has already is not copied again.

A plan carries out moves to the host first and moves to the device later. So what it moves to the device it cannot move
out as well, and need not: what it reads in the host tier stays there until the plan is made. And no sequence is swapped
out by the plan in which it starts, but for one that comes back with it: its host blocks are still whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock.cache.blocks import BlockPool, BlockState
from penstock.cache.groups import Parcel, StateGroup
from penstock.cache.prefix import KeyChain, PrefixIndex
from penstock.core.plan import BlockMove, Toward
from penstock.core.view import CostView, RetainPolicy


@dataclass(slots=True)
class Traffic:
    """What went each way since the start, and what it was good for."""

    swapped_out: int = 0  # sequences
    swapped_in: int = 0
    out_blocks: int = 0
    out_bytes: int = 0
    in_blocks: int = 0
    in_bytes: int = 0
    spilled_blocks: int = 0
    hit_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Stored:
    """The state of a swapped sequence in one group, and the host blocks in which it lies."""

    parcel: Parcel
    blocks: tuple[int, ...]


@dataclass(slots=True)
class _Departure:
    """Moves of a plan that was handed out. drained: device blocks (group, block) that only their copy still needs."""

    n_bytes: int
    drained: list[tuple[int, int]]


class HostGroup:
    """The host blocks of one state group."""

    def __init__(self, n_blocks: int, retain: RetainPolicy) -> None:
        self.index = PrefixIndex()
        self.pool = BlockPool(n_blocks, retain, on_evict=self.index.forget)

    def give_back(self, block: int, now_s: float) -> None:
        self.pool.give_back(block, keep=self.index.knows(block), now_s=now_s)

    def n_missing(self, keys: Sequence[bytes | None]) -> int:
        return sum(key is None or not self.index.has(key) for key in keys)

    def has_room(self, keys: Sequence[bytes | None]) -> bool:
        """Whether all of this content could lie here at once."""
        return self.n_missing(keys) <= self.pool.available - _n_evictable(self.pool, self.index, keys)


class HostTier:
    """The host blocks of an instance; `Memory` asks it, and nobody else."""

    def __init__(
        self,
        groups: Sequence[StateGroup],
        n_blocks: Sequence[int],
        new_retain: Callable[[], RetainPolicy],
        costs: CostView,
    ) -> None:
        self.traffic = Traffic()
        self.groups = tuple(HostGroup(n, new_retain()) for n in n_blocks)
        self.now_s = 0.0
        self._device = tuple(groups)
        self._costs = costs
        self._stored: dict[str, tuple[Stored, ...]] = {}
        # of the plan that is being made:
        self._outs: list[BlockMove] = []
        self._ins: list[BlockMove] = []
        self._held: list[tuple[int, int]] = []  # host blocks that its moves read: (group, block)
        self._returning: dict[str, tuple[Stored, ...]] = {}  # sequences that come back with it
        self._begun: set[str] = set()
        self._drained: list[tuple[int, int]] = []
        # of those that were handed out:
        self._departures: dict[int, _Departure] = {}
        self._moving: dict[tuple[int, int], int] = {}  # device block -> the plan that copies it
        for g, (group, host) in enumerate(zip(groups, self.groups, strict=True)):
            group.pool.save = self._spiller(g, group, host)

    # --- sequences ------------------------------------------------------------------------------------------------
    def note_begun(self, seq_id: str) -> None:
        """The sequence starts with the plan that is being made."""
        self._begun.add(seq_id)

    def is_swapped(self, seq_id: str) -> bool:
        return seq_id in self._stored

    def swap_bytes(self, seq_id: str, chain: KeyChain, tokens: int) -> int | None:
        """What `swap_out` would copy; None: it cannot be done now."""
        if seq_id in self._returning:
            return 0
        if seq_id in self._begun or tokens == 0:
            return None
        n_bytes = 0
        for group, host in zip(self._device, self.groups, strict=True):
            keys = group.pack(seq_id, chain, tokens).keys
            if not host.has_room(keys):
                return None
            n_bytes += host.n_missing(keys) * group.spec.block_bytes
        return n_bytes

    def swap_out(self, seq_id: str, chain: KeyChain, tokens: int) -> None:
        """The state of a resident sequence behind `tokens` tokens goes to the host; `swap_bytes` said that it can."""
        self.traffic.swapped_out += 1
        n_outs = len(self._outs)
        stored = self._returning.pop(seq_id, None)
        if stored is None:
            parcels = [group.pack(seq_id, chain, tokens) for group in self._device]
            stored = tuple(Stored(parcel, self._store(g, parcel)) for g, parcel in enumerate(parcels))
        self._stored[seq_id] = stored
        for group in self._device:
            group.release(seq_id, self.now_s)
        for move in self._outs[n_outs:]:
            pool = self._device[move.group].pool
            if pool.state(move.block) is BlockState.FREE:
                pool.move(move.block, BlockState.MOVING, self.now_s)
                self._drained.append((move.group, move.block))

    def _store(self, g: int, parcel: Parcel) -> tuple[int, ...]:
        host = self.groups[g]
        found, taken = _claim(host.pool, host.index, parcel.keys)
        for at in taken:
            self._move_out(g, parcel.blocks[at], found[at])
        return tuple(found)

    def try_swap_in(self, seq_id: str) -> tuple[tuple[int, ...], ...] | None:
        """Device blocks for a swapped sequence, and its table in each group; None, and nothing changed, if short."""
        stored = self._stored[seq_id]
        if not self._has_device_room([one.parcel.keys for one in stored]):
            return None
        self.note_begun(seq_id)
        tables = []
        for g, (group, one) in enumerate(zip(self._device, stored, strict=True)):
            blocks = self._bring(g, one.parcel.keys, one.blocks)
            tables.append(group.unpack(seq_id, one.parcel, blocks))
        self._returning[seq_id] = self._stored.pop(seq_id)
        self.traffic.swapped_in += 1
        return tuple(tables)

    def drop(self, seq_id: str) -> None:
        """A sequence that was swapped out is over."""
        self._give_back(self._stored.pop(seq_id, ()))

    def _give_back(self, stored: Sequence[Stored]) -> None:
        for host, one in zip(self.groups, stored, strict=bool(stored)):
            for block in reversed(one.blocks):
                host.give_back(block, self.now_s)

    # --- prefixes -------------------------------------------------------------------------------------------------
    def has(self, g: int, key: bytes) -> bool:
        return self.groups[g].index.has(key) or self._device[g].index.has(key)

    def is_worth_bringing(self, keys: Sequence[Sequence[bytes]], tokens: int) -> bool:
        """Whether bringing all of this content to the device takes less than computing these tokens.

        keys: of each group.
        """
        n_bytes = sum(
            sum(not group.index.has(key) for key in of_group) * group.spec.block_bytes
            for group, of_group in zip(self._device, keys, strict=True)
        )
        return self._costs.move_s(n_bytes) < self._costs.prefill_s(tokens)

    def try_bring(self, keys: Sequence[Sequence[bytes]]) -> list[tuple[int, int]] | None:
        """Bring all of this content to the device, and hold it there: (group, block) of each, to be let go by `let_go`
        when its users have it. None, and nothing changed, if one group is short of blocks.
        """
        if not self._has_device_room(keys):
            return None
        held: list[tuple[int, int]] = []
        for g, of_group in enumerate(keys):
            sources = [self.groups[g].index.find(key) for key in of_group]
            held += ((g, block) for block in self._bring(g, of_group, sources))
        return held

    def let_go(self, held: Sequence[tuple[int, int]]) -> None:
        for g, block in held:
            self._device[g].pool.give_back(block, keep=True, now_s=self.now_s)

    def _has_device_room(self, keys: Sequence[Sequence[bytes | None]]) -> bool:
        for group, of_group in zip(self._device, keys, strict=True):
            n_missing = sum(key is None or not group.index.has(key) for key in of_group)
            if n_missing > group.pool.available - _n_evictable(group.pool, group.index, of_group):
                return False
        return True

    def _bring(self, g: int, keys: Sequence[bytes | None], sources: Sequence[int | None]) -> list[int]:
        """Device blocks with this content; what the device has not got comes from `sources`."""
        group = self._device[g]
        for source in sources:  # before blocks are taken: evicting others may need room here
            if source is not None:
                self.groups[g].pool.share(source)
                self._held.append((g, source))
        found, taken = _claim(group.pool, group.index, keys)
        for at in taken:
            source = sources[at]
            assert source is not None, "neither tier has what both were said to have"
            self._ins.append(BlockMove(g, found[at], source, Toward.DEVICE))
            self.traffic.in_blocks += 1
            self.traffic.in_bytes += group.spec.block_bytes
        return found

    def _spiller(self, g: int, group: StateGroup, host: HostGroup) -> Callable[[int], None]:
        def spill(block: int) -> None:
            """Keep what the device is about to lose, if the host has room and copying there and back is cheaper than
            computing it again."""
            key = group.index.key_of(block)
            if key is None:
                return
            known = host.index.find(key)
            if known is not None:  # as it is for whatever this plan brings; now it stays as long as if it had just come
                host.pool.share(known)
                host.give_back(known, self.now_s)
                return
            there_and_back_s = 2 * self._costs.move_s(group.spec.block_bytes)
            if there_and_back_s >= self._costs.prefill_s(group.spec.block_tokens):
                return
            taken = host.pool.try_take(1)
            if taken is not None:
                host.index.put(key, taken[0])
                self._move_out(g, block, taken[0])
                host.give_back(taken[0], self.now_s)
                self.traffic.spilled_blocks += 1

        return spill

    def _move_out(self, g: int, block: int, host_block: int) -> None:
        self._outs.append(BlockMove(g, block, host_block, Toward.HOST))
        self.traffic.out_blocks += 1
        self.traffic.out_bytes += self._device[g].spec.block_bytes

    # --- plans ----------------------------------------------------------------------------------------------------
    @property
    def n_arriving(self) -> int:
        """Blocks that the plan which is being made moves to the device."""
        return len(self._ins)

    @property
    def has_moves(self) -> bool:
        return bool(self._outs or self._ins)

    def take_moves(self, plan_id: int) -> tuple[BlockMove, ...]:
        """The moves of the plan that is handed out now."""
        moves = (*self._outs, *self._ins)
        for g, block in self._held:
            self.groups[g].give_back(block, self.now_s)
        for stored in self._returning.values():
            self._give_back(stored)
        if moves:
            n_bytes = sum(self._device[move.group].spec.block_bytes for move in moves)
            self._departures[plan_id] = _Departure(n_bytes, self._drained)
            self._moving |= dict.fromkeys(self._drained, plan_id)
            self._outs, self._ins, self._drained = [], [], []
        self._held.clear()
        self._returning.clear()
        self._begun.clear()
        return moves

    def landed(self, plan_id: int) -> int:
        """The moves of a plan are complete. Returns their bytes."""
        departure = self._departures.pop(plan_id)
        for g, block in departure.drained:
            if self._moving.get((g, block)) != plan_id:
                continue  # taken meanwhile, and copied again by a later plan
            del self._moving[g, block]
            if self._device[g].pool.state(block) is BlockState.MOVING:
                self._device[g].pool.move(block, BlockState.FREE, self.now_s)
        return departure.n_bytes

    def audit(self) -> None:
        """Check conservation; raises AssertionError."""
        stored = (*self._stored.values(), *self._returning.values())
        for g, host in enumerate(self.groups):
            tables = [one[g].blocks for one in stored]
            host.pool.audit([*tables, *([block] for at, block in self._held if at == g)])
            assert len(host.index) >= host.pool.count(BlockState.CACHED), "a cached host block cannot be found"
        moving = {(g, b) for g, group in enumerate(self._device) for b in _those_moving(group.pool)}
        assert moving <= set(self._moving) | set(self._drained), "a block moves, and no plan copies it"

    def counters(self) -> dict[str, float]:
        """Gauges and counters by plain name; those of blocks are of all groups together."""
        if not any(host.pool.n_blocks for host in self.groups):
            return {}
        traffic, pools = self.traffic, [host.pool for host in self.groups]
        fullest = max(pools, key=lambda pool: 1 - pool.count(BlockState.FREE) / max(1, pool.n_blocks))
        return {
            "host_kv_blocks": fullest.n_blocks,
            "host_kv_swapped_blocks": fullest.count(BlockState.ACTIVE),
            "host_kv_cached_blocks": fullest.count(BlockState.CACHED),
            "host_kv_moving_blocks": sum(group.pool.count(BlockState.MOVING) for group in self._device),
            "swaps_out_total": traffic.swapped_out,
            "swaps_in_total": traffic.swapped_in,
            "host_moved_out_blocks_total": traffic.out_blocks,
            "host_moved_out_bytes_total": traffic.out_bytes,
            "host_moved_in_blocks_total": traffic.in_blocks,
            "host_moved_in_bytes_total": traffic.in_bytes,
            "host_spilled_blocks_total": traffic.spilled_blocks,
            "host_hit_tokens_total": traffic.hit_tokens,
        }


def _n_evictable(pool: BlockPool, index: PrefixIndex, keys: Sequence[bytes | None]) -> int:
    """How many of the blocks with this content count as available: `_claim` makes these active."""
    blocks = {block for key in keys if key is not None and (block := index.find(key)) is not None}
    return sum(pool.state(block) is BlockState.CACHED for block in blocks)


def _claim(pool: BlockPool, index: PrefixIndex, keys: Sequence[bytes | None]) -> tuple[list[int], list[int]]:
    """A block for each piece of content, one user more on each. Returns (blocks, places of those to be filled).

    What is there is claimed before anything is taken: taking evicts. New blocks can be found by their keys at once.
    """
    there = [None if key is None else index.find(key) for key in keys]
    for block in there:
        if block is not None:
            pool.share(block)
    places = [at for at, block in enumerate(there) if block is None]
    fresh = pool.try_take(len(places))
    assert fresh is not None, "room was promised for what is to be moved"
    found = [-1 if block is None else block for block in there]
    for at, block in zip(places, fresh, strict=True):
        found[at] = block
        key = keys[at]
        if key is not None:
            index.put(key, block)
    return found, places


def _those_moving(pool: BlockPool) -> list[int]:
    return [block for block in range(pool.n_blocks) if pool.state(block) is BlockState.MOVING]
