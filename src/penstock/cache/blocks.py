"""The block pool: every block is in exactly one state, and only the pool moves it.

A block is *active* while sequences use it (shared prefixes: several), then *free*, or *cached* if its content may be
found again, or *pinned*: cached, and not evictable until a time. It is *moving* while its content, which nobody needs
here any more, is being copied to the host tier: it is handed out when nothing else is free, for then the step that
overwrites it has to wait. *In transfer*, it may not be handed out. The host tier has a pool of its own (`host.py`).
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum

from penstock.core.errors import IllegalTransition
from penstock.core.view import RetainPolicy


class BlockState(Enum):
    """Where a block stands."""

    FREE = "free"
    ACTIVE = "active"
    CACHED = "cached"
    PINNED = "pinned"
    MOVING = "moving"  # free, but its old content is still being copied to another tier
    IN_TRANSFER = "in-transfer"  # another instance is pulling it

    __hash__ = object.__hash__  # members are the only objects of their kind; Enum's own goes by the name, in Python


B = BlockState
NEXT: Mapping[BlockState, frozenset[BlockState]] = {
    B.FREE: frozenset({B.ACTIVE, B.MOVING}),
    B.ACTIVE: frozenset({B.FREE, B.CACHED, B.PINNED, B.IN_TRANSFER}),
    B.CACHED: frozenset({B.ACTIVE, B.FREE, B.PINNED}),
    B.PINNED: frozenset({B.ACTIVE, B.CACHED}),
    B.MOVING: frozenset({B.ACTIVE, B.FREE}),
    B.IN_TRANSFER: frozenset({B.FREE, B.CACHED}),
}


class BlockPool:
    """`n_blocks` blocks of one state group.

    on_evict is called with blocks whose cached content is about to be lost; `save`, which a lower tier may set, with
    each of them before that.
    """

    def __init__(
        self, n_blocks: int, retain: RetainPolicy, on_evict: Callable[[Iterable[int]], None] = lambda blocks: None
    ) -> None:
        self.n_blocks = n_blocks
        self.retain = retain
        self.save: Callable[[int], None] | None = None
        self._on_evict = on_evict
        self._state = [B.FREE] * n_blocks
        self._users = [0] * n_blocks
        self._counts = dict.fromkeys(B, 0)
        self._counts[B.FREE] = n_blocks
        self._free = OrderedDict.fromkeys(range(n_blocks))  # in the order in which they became free
        self._moving: OrderedDict[int, None] = OrderedDict()  # in the order in which their copies began
        self._pins: list[tuple[float, int]] = []  # (until_s, block), a heap; a stale entry is passed over
        self._pinned_until_s: dict[int, float] = {}

    def count(self, state: BlockState) -> int:
        return self._counts[state]

    def state(self, block: int) -> BlockState:
        return self._state[block]

    def users(self, block: int) -> int:
        """Sequences that have the block in a table."""
        return self._users[block]

    @property
    def available(self) -> int:
        """Blocks that `try_take` can hand out: free or about to be, or cached and evictable."""
        return self._counts[B.FREE] + self._counts[B.MOVING] + self._counts[B.CACHED]

    def move(self, block: int, to: BlockState, now_s: float) -> None:
        """Change the state of a block that no sequence uses: between tiers, or to another instance.

        Raises IllegalTransition, and changes nothing, if the table has no such move.
        """
        self._check_legal(block, to)
        assert B.ACTIVE not in (self._state[block], to), "active blocks come and go with their users"
        assert to is not B.PINNED, "a pin has a time: give the block back with it"
        self._move(block, to)
        if to is B.CACHED:
            self.retain.on_cached((block,), now_s)

    def _check_legal(self, block: int, to: BlockState) -> None:
        at = self._state[block]
        if to not in NEXT[at]:
            legal = ", ".join(sorted(state.value for state in NEXT[at]))
            raise IllegalTransition(
                f"block {block}: {at.value} -> {to.value} is not a legal move; from here it may go to {legal}"
            )

    def _move(self, block: int, to: BlockState) -> None:
        self._check_legal(block, to)
        at = self._state[block]
        if at is B.FREE:
            del self._free[block]
        elif at is B.MOVING:
            del self._moving[block]
        elif at is B.CACHED:
            if to is B.FREE:
                self._let_go((block,))
            self.retain.on_removed((block,))
        elif at is B.PINNED:
            del self._pinned_until_s[block]
        self._state[block] = to
        self._counts[at] -= 1
        self._counts[to] += 1
        if to is B.FREE:
            self._free[block] = None
        elif to is B.MOVING:
            self._moving[block] = None

    def try_take(self, n: int) -> tuple[int, ...] | None:
        """`n` blocks for one user, evicting cached ones if it must. None, and nothing changed, if they are too few."""
        if n > self.available:
            return None
        n_free = min(n, len(self._free))
        n_evicted = max(0, n - len(self._free) - len(self._moving))
        taken = [self._free.popitem(last=False)[0] for _ in range(n_free)]
        if n_evicted:
            taken += self._evict(n_evicted)
        taken += [self._moving.popitem(last=False)[0] for _ in range(n - n_free - n_evicted)]
        self._counts[B.FREE] -= n_free
        self._counts[B.CACHED] -= n_evicted
        self._counts[B.MOVING] -= n - n_free - n_evicted
        self._counts[B.ACTIVE] += n
        states, users = self._state, self._users
        for block in taken:
            states[block] = B.ACTIVE
            users[block] = 1
        return tuple(taken)

    def _evict(self, n: int) -> Sequence[int]:
        """Blocks that are cached no more; what they are instead is the caller's business."""
        blocks = self.retain.victims(n)
        self._let_go(blocks)
        self.retain.on_removed(blocks)
        return blocks

    def _let_go(self, blocks: Sequence[int]) -> None:
        """The content of these cached blocks is about to be lost."""
        if self.save is not None:
            for block in blocks:
                self.save(block)
        self._on_evict(blocks)

    def share(self, block: int) -> None:
        """One more user of a block with content: it becomes, or stays, active."""
        if self._state[block] is not B.ACTIVE:
            self._move(block, B.ACTIVE)
        self._users[block] += 1

    def give_back(self, block: int, *, keep: bool, now_s: float, pin_until_s: float | None = None) -> None:
        """One user less. The last one leaves the block cached (or pinned) if `keep`, else free."""
        self.give_back_all((block,), lambda _: keep, now_s, pin_until_s)

    def give_back_all(
        self, blocks: Iterable[int], keep: Callable[[int], bool], now_s: float, pin_until_s: float | None = None
    ) -> None:
        """The same for many: `keep` is asked about each."""
        states, users = self._state, self._users
        kept, n_freed = [], 0
        for block in blocks:
            left = users[block] = users[block] - 1
            assert left >= 0, f"block {block} has no user to give it back"
            if left:
                continue
            if keep(block):
                kept.append(block)
            else:
                states[block] = B.FREE
                self._free[block] = None
                n_freed += 1
        self._counts[B.ACTIVE] -= n_freed
        self._counts[B.FREE] += n_freed
        if pin_until_s is not None and pin_until_s > now_s:
            for block in kept:
                self._pin(block, pin_until_s)
        elif kept:
            for block in kept:
                states[block] = B.CACHED
            self._counts[B.ACTIVE] -= len(kept)
            self._counts[B.CACHED] += len(kept)
            self.retain.on_cached(kept, now_s)

    def _pin(self, block: int, until_s: float) -> None:
        self._move(block, B.PINNED)
        self._pinned_until_s[block] = until_s
        heapq.heappush(self._pins, (until_s, block))

    def expire_pins(self, now_s: float) -> None:
        """Pinned blocks whose time has come are cached again."""
        while self._pins and self._pins[0][0] <= now_s:
            until_s, block = heapq.heappop(self._pins)
            if self._pinned_until_s.get(block) == until_s:
                self.unpin(block, now_s)

    def unpin(self, block: int, now_s: float) -> None:
        """End a pin early."""
        self._move(block, B.CACHED)
        self.retain.on_cached((block,), now_s)

    def audit(self, tables: Iterable[Iterable[int]]) -> None:
        """Check conservation against the block tables of all users; an AssertionError names what is off."""
        users = [0] * self.n_blocks
        for table in tables:
            for block in table:
                users[block] += 1
        assert sum(self._counts.values()) == self.n_blocks, f"states sum to {self._counts}, pool has {self.n_blocks}"
        for block, state in enumerate(self._state):
            assert users[block] == self._users[block], (
                f"block {block}: {users[block]} users, {self._users[block]} noted"
            )
            assert (state is B.ACTIVE) == (users[block] > 0), f"block {block} is {state.value}, {users[block]} users"
        for state in B:
            counted = sum(1 for at in self._state if at is state)
            assert counted == self._counts[state], f"{counted} blocks {state.value}, {self._counts[state]} noted"
        assert sorted(self._free) == [b for b, at in enumerate(self._state) if at is B.FREE], "free list is off"
        assert sorted(self._moving) == [b for b, at in enumerate(self._state) if at is B.MOVING], "moving list is off"
