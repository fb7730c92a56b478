"""All state of one instance: the groups of its model taken together.

A sequence starts where *every* group can go on, grows only if every group can, and is released from all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import partial

from penstock.cache.blocks import BlockState
from penstock.cache.coming import Coming
from penstock.cache.groups import Has, PagedGroup, StateGroup
from penstock.cache.host import HostTier
from penstock.cache.prefix import KeyChain, root_key
from penstock.cache.windowed import WindowedGroup
from penstock.core.errors import UnsupportedModel
from penstock.core.executor import StateKind, StateSpec
from penstock.core.plan import BlockCopy, BlockMove, RowBlocks
from penstock.core.sequence import SeqState, Sequence, SequenceView
from penstock.core.view import RetainPolicy

BLOCKS_AHEAD = 4  # that a decoding sequence is given at once, where memory is plenty


@dataclass(frozen=True, slots=True)
class Change:
    """What the device must be told after memory was given to a sequence."""

    grows: tuple[RowBlocks, ...] = ()
    copies: tuple[BlockCopy, ...] = ()


@dataclass(frozen=True, slots=True)
class Fork:
    """A sequence begun with the state of a sibling behind `tokens` tokens: its block tables, one per group, and what is
    copied into them first.
    """

    tokens: int
    tables: tuple[tuple[int, ...], ...]
    copies: tuple[BlockCopy, ...]


@dataclass(slots=True)
class Counters:
    """Prefix cache statistics, in tokens, since the start."""

    queried_tokens: int = 0
    hit_tokens: int = 0


def build_groups(
    specs: tuple[StateSpec, ...], n_blocks: tuple[int, ...], new_retain: Callable[[], RetainPolicy]
) -> tuple[StateGroup, ...]:
    """The state groups of a model, each with its own pool and its own retain policy.

    Raises UnsupportedModel for a kind of state that no group keeps yet.
    """
    kinds: dict[StateKind, type[PagedGroup] | type[WindowedGroup]] = {
        StateKind.PAGED: PagedGroup,
        StateKind.WINDOWED: WindowedGroup,
    }
    for spec in specs:
        if spec.kind not in kinds:
            kept = ", ".join(kind.value for kind in kinds)
            raise UnsupportedModel(
                f"state group {spec.name!r}: {spec.kind.value} state is not kept yet; kept are: {kept}"
            )
    return tuple(kinds[spec.kind](spec, n, new_retain()) for spec, n in zip(specs, n_blocks, strict=True))


@dataclass(frozen=True, slots=True)
class Pool:
    """A group as policies see it."""

    group: StateGroup

    @property
    def total_blocks(self) -> int:
        return self.group.pool.n_blocks

    @property
    def available_blocks(self) -> int:
        return self.group.pool.available

    @property
    def used_frac(self) -> float:
        return 1 - self.available_blocks / self.total_blocks

    def blocks_for(self, tokens: int) -> int:
        return self.group.blocks_for(tokens)

    def held_blocks(self, seq: SequenceView) -> int:
        return self.group.held_blocks(seq.id)


class Memory:
    """The owner of all blocks of an instance; also the `MemoryView` of policies."""

    def __init__(
        self,
        groups: tuple[StateGroup, ...],
        key_tokens: int,
        *,
        share_prefixes: bool = True,
        host: HostTier | None = None,
    ) -> None:
        """key_tokens: tokens of one link of the hash chain, the block size of the groups that cache."""
        by_block = [group.spec for group in groups if isinstance(group, PagedGroup | WindowedGroup)]
        assert all(spec.block_tokens == key_tokens for spec in by_block)
        self.groups = groups
        self.host = host
        self.pools = tuple(Pool(group) for group in groups)
        self.counters = Counters()
        self._key_tokens = key_tokens
        self._share_prefixes = share_prefixes
        self._chains: dict[str, KeyChain] = {}
        self._coming = Coming(key_tokens)
        self._now_s = 0.0

    # --- MemoryView -------------------------------------------------------------------------------------------------
    def hit_tokens(self, seq: SequenceView) -> int:
        """Tokens of a waiting sequence that need not be computed; at least one always is, for its logits."""
        assert isinstance(seq, Sequence)
        if self.host is not None and self.host.is_swapped(seq.id):
            return min(seq.planned_tokens, len(seq.tokens) - 1)
        hit, brought = self._hit(seq)
        return max(hit, brought)

    def coming_tokens(self, seq: SequenceView) -> int:
        """Tokens of a waiting sequence that it will find here once those who run have computed what they share with it.

        0: nobody computes what it lacks.
        """
        assert isinstance(seq, Sequence)
        known = self._coming.known_tokens(seq)
        if known and not self._has_block_before(known, self._chain(seq)):
            return known
        if self._coming.is_empty or seq.state is not SeqState.WAITING or not self._shares(seq):
            return 0
        longest = max(self._coming.shares(seq, self._chain(seq)), key=lambda share: share.stop_tokens, default=None)
        if longest is None or longest.stop_tokens <= max(self._hit(seq)):
            return 0
        self._coming.keep(seq, longest)
        return longest.stop_tokens

    def _has_block_before(self, tokens: int, chain: KeyChain) -> bool:
        """Whether somebody else put it there: the last one comes last."""
        key = chain.key(tokens // self._key_tokens - 1)
        return all(key in group.index.of(chain) for group in self.groups)

    def swap_bytes(self, seq: SequenceView) -> int | None:
        """Bytes that a sequence with a row would have copied to host memory now; None: it cannot yield so.

        A pass that was cut along the layers holds a residual stream, which is not swapped.
        """
        assert isinstance(seq, Sequence)
        if self.host is None or seq.row is None or seq.pass_stop_tokens is not None:
            return None
        return self.host.swap_bytes(seq.id, self._chain(seq), seq.planned_tokens)

    def _shares(self, seq: Sequence) -> bool:
        """Whether the sequence may begin with what others computed; log-probabilities of a prompt need its pass."""
        return self._share_prefixes and seq.request.sampling.prompt_logprobs is None

    def _hit(self, seq: Sequence) -> tuple[int, int]:
        """(tokens that the device has, tokens with those that the host has and that are worth bringing, or 0)."""
        if not self._shares(seq):
            return 0, 0
        chain, host = self._chain(seq), self.host
        on_device: list[Has] = [group.index.of(chain).__contains__ for group in self.groups]
        device = self._longest_hit(chain, len(seq.tokens) - 1, on_device)
        if host is None:
            return device, 0
        in_either: list[Has] = [partial(host.has, g) for g in range(len(self.groups))]
        both = self._longest_hit(chain, len(seq.tokens) - 1, in_either)
        if both <= device or not host.is_worth_bringing(self._hit_keys(chain, both), both - device):
            return device, 0
        return device, both

    def _longest_hit(self, chain: KeyChain, limit_tokens: int, has: list[Has]) -> int:
        return self._longest(limit_tokens, lambda g, limit: self.groups[g].longest_hit(chain, limit, has[g]))

    def _hit_keys(self, chain: KeyChain, tokens: int) -> list[Seq[bytes]]:
        return [group.hit_keys(chain, tokens) for group in self.groups]

    def _longest(self, limit_tokens: int, ask: Callable[[int, int], int]) -> int:
        """The most tokens, at most the limit, that suit every group; each answers with the most that suit it."""
        while True:
            shorter = limit_tokens
            for g in range(len(self.groups)):
                shorter = ask(g, shorter)
            if shorter == limit_tokens:
                return shorter
            limit_tokens = shorter

    # --- what the scheduler does --------------------------------------------------------------------------------------
    def fits_ever(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens fits when it is alone."""
        return all(group.blocks_for(tokens) <= group.pool.n_blocks for group in self.groups)

    def start(self, seq: Sequence) -> tuple[int, tuple[tuple[int, ...], ...]]:
        """Begin a sequence at its prefix hit. Returns the hit in tokens and one block table per group.

        What the host has of it is moved to the device, unless there is no room for that.
        """
        chain = self._chain(seq)
        hit, brought = self._hit(seq)
        held = None
        if self.host is not None:
            self.host.note_begun(seq.id)
            held = self.host.try_bring(self._hit_keys(chain, brought)) if brought else None
            if held is not None:
                self.host.traffic.hit_tokens += brought - hit
                hit = brought
        self.counters.queried_tokens += len(seq.tokens)
        self.counters.hit_tokens += hit
        tables = tuple(group.start(seq.id, chain, hit) for group in self.groups)
        if self.host is not None and held is not None:
            self.host.let_go(held)
        self._coming.forget(seq)
        if self._share_prefixes:
            self._coming.note(seq, chain, hit)
        return hit, tables

    def fork_tokens(self, parent: Sequence, limit_tokens: int) -> int:
        """The most tokens, at most the limit, behind which a resident sibling still has all its state."""
        return self._longest(limit_tokens, lambda g, limit: self.groups[g].longest_fork(parent.id, limit))

    def try_fork(self, parent: Sequence, seq: Sequence, tokens: int) -> Fork | None:
        """Begin a sequence with a resident sibling's state behind `tokens` tokens, an answer of `fork_tokens`.

        None, and nothing changed, if one group is short of blocks.
        """
        if any(group.fork_blocks(parent.id, tokens) > group.pool.available for group in self.groups):
            return None
        growths = [group.fork(parent.id, seq.id, tokens) for group in self.groups]
        self._chain(seq)
        self._coming.forget(seq)
        if self.host is not None:
            self.host.note_begun(seq.id)
        copies = tuple(BlockCopy(g, a, b) for g, growth in enumerate(growths) for a, b in growth.copies)
        return Fork(tokens, tuple(growth.blocks for growth in growths), copies)

    def trim(self, seq: Sequence) -> None:
        """What the sequence will not read again goes back; others may find it in the cache."""
        self.note_written(seq)
        for group in self.groups:
            group.trim(seq.id, seq.planned_tokens, self._now_s)

    def try_grow(self, seq: Sequence, to_tokens: int) -> Change | None:
        """Room for tokens [0, to_tokens) in every group; None, and nothing changed, if one is short."""
        assert seq.row is not None
        if len(self.groups) > 1 and any(
            group.missing_blocks(seq.id, to_tokens) > group.pool.available for group in self.groups
        ):
            return None
        grows: list[RowBlocks] = []
        copies: list[BlockCopy] = []
        for g, group in enumerate(self.groups):
            growth = group.grow(seq.id, to_tokens)
            if growth is None:
                assert not g, "a group took more blocks than it said it would"
                return None
            if growth.blocks:
                grows.append(RowBlocks(seq.row, g, growth.at, growth.blocks))
            copies.extend(BlockCopy(g, a, b) for a, b in growth.copies)
        return Change(tuple(grows), tuple(copies))

    def decode_tokens(self, seq: Sequence) -> int:
        """Up to where a decoding sequence whose blocks are full gets room.

        A few blocks at a time, so that tables change less often; one where that would leave little for others.
        """
        one_more = seq.planned_tokens + 1
        last = len(seq.request.prompt) + seq.output_limit_tokens - 1
        for group in self.groups:
            is_plenty = group.pool.available - BLOCKS_AHEAD >= group.pool.n_blocks // 2
            if not (is_plenty and isinstance(group, PagedGroup)):
                return one_more
        return max(one_more, min(last, seq.planned_tokens + BLOCKS_AHEAD * self._key_tokens))

    @property
    def chunk_tokens(self) -> int | None:
        """The most tokens of one sequence that a step may take; None: any number."""
        bounds = [group.chunk_tokens for group in self.groups if group.chunk_tokens is not None]
        return min(bounds, default=None)

    def capacity_tokens(self, seq: Sequence) -> int | None:
        """Tokens that fit before the next `try_grow`; None: any number."""
        room = [c for c in (group.capacity_tokens(seq.id) for group in self.groups) if c is not None]
        return min(room) if room else None

    def note_written(self, seq: Sequence) -> None:
        """What is planned and whose tokens are known can be found by other sequences from now on."""
        known = min(seq.planned_tokens, len(seq.tokens))
        if self._share_prefixes:
            for group in self.groups:
                group.note_full(seq.id, self._chains[seq.id], known)
            if seq.id in self._coming.noted:
                self._coming.note_written(seq, known)

    def release(self, seq: Sequence, now_s: float, *, is_over: bool) -> None:
        """A resident sequence gives up its memory; full blocks stay cached, or pinned if the retain policy says so."""
        self.note_written(seq)
        for group in self.groups:
            pin_until_s = group.pool.retain.pin_until_s(seq, now_s) if is_over else None
            group.release(seq.id, now_s, pin_until_s)
        self._coming.drop(seq)

    def swap_out(self, seq: Sequence) -> None:
        """A resident sequence gives up its memory, and its state goes to the host; `swap_bytes` said that it can."""
        assert self.host is not None
        self.note_written(seq)
        self.host.swap_out(seq.id, self._chain(seq), seq.planned_tokens)
        self._coming.drop(seq)

    def try_swap_in(self, seq: Sequence) -> tuple[tuple[int, ...], ...] | None:
        """Memory for a swapped sequence: one block table per group. None, and nothing changed, if one is short."""
        assert self.host is not None
        tables = self.host.try_swap_in(seq.id)
        if tables is not None and self._share_prefixes:
            self._coming.note(seq, self._chain(seq), seq.planned_tokens)
        return tables

    def landed(self, plan_id: int) -> int:
        """The moves of a plan that carried some are complete. Returns their bytes."""
        assert self.host is not None
        return self.host.landed(plan_id)

    def host_counters(self) -> dict[str, float]:
        """Gauges and counters of the host tier by plain name; none without one."""
        return {} if self.host is None else self.host.counters()

    def forget(self, seq: Sequence) -> None:
        """The sequence is over: its key chain goes too, and what the host has of it."""
        self._chains.pop(seq.id, None)
        self._coming.forget(seq)
        if self.host is not None:
            self.host.drop(seq.id)

    @property
    def is_still(self) -> bool:
        """Nothing happens in it by itself: no pin will expire, and there is no tier to move to."""
        return self.host is None and not any(group.pool.count(BlockState.PINNED) for group in self.groups)

    @property
    def has_moves(self) -> bool:
        """Whether the plan that is being made has something to move between the tiers."""
        return self.host is not None and self.host.has_moves

    @property
    def n_arriving(self) -> int:
        """Blocks that the plan which is being made moves to the device."""
        return 0 if self.host is None else self.host.n_arriving

    def take_moves(self, plan_id: int) -> tuple[BlockMove, ...]:
        """Moves between the tiers that the plan which is handed out now carries."""
        return () if self.host is None else self.host.take_moves(plan_id)

    def tick(self, now_s: float) -> None:
        """Time goes on: pins expire."""
        self._now_s = now_s
        if self.host is not None:
            self.host.now_s = now_s
        for group in self.groups:
            group.pool.expire_pins(now_s)

    def audit(self) -> None:
        """Check conservation in every group and tier; raises AssertionError."""
        for group in self.groups:
            group.audit()
        self._coming.audit()
        if self.host is not None:
            self.host.audit()

    def _chain(self, seq: Sequence) -> KeyChain:
        chain = self._chains.get(seq.id)
        if chain is None:
            chain = self._chains[seq.id] = KeyChain(root_key(seq.request.cache_salt), self._key_tokens, seq.tokens)
        return chain
