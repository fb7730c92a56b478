"""The oracle of `oracle.py` for models with several state groups: each group's blocks are checked before every pass."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from penstock.cache.groups import StateGroup
from penstock.core.executor import ModelFacts, StepResult, Ticket
from penstock.core.plan import Plan, RowStart, Toward
from tests.cache.toy_groups import states_of, store_of
from tests.engine.oracle import VOCAB, next_token


@dataclass
class GroupRow:
    tokens: list[int]
    tables: list[list[int]]
    seed: int
    done: int  # tokens whose state is written


@dataclass
class GroupOracle:
    """Runs a plan at `collect`, in order. Layers are not looked at: a pass goes through all of them."""

    groups: tuple[StateGroup, ...]
    max_model_tokens: int = 64
    max_rows: int = 6
    rows: dict[int, GroupRow] = field(default_factory=dict)
    queue: deque[Plan] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.specs = tuple(group.spec for group in self.groups)  # type: ignore[attr-defined]
        self.stores = [store_of(spec) for spec in self.specs]
        self.host_stores = [store_of(spec) for spec in self.specs]

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(
            name="groups", n_layers=len(self.specs), vocab_size=VOCAB, max_model_tokens=self.max_model_tokens,
            stop_token_ids=frozenset(), states=self.specs, weight_bytes=0,
        )  # fmt: skip

    def allocate(self, n_blocks: tuple[int, ...], n_host_blocks: tuple[int, ...] = ()) -> None:
        """The stores grow as they are written."""

    def submit(self, plan: Plan) -> Ticket:
        self.queue.append(plan)
        return Ticket(plan.id)

    def collect(self, ticket: Ticket) -> StepResult:
        plan = self.queue.popleft()
        assert plan.id == ticket.plan_id
        moved = ((plan.id, 1e-3 * len(plan.moves)),) if plan.moves else ()
        return StepResult(tokens=np.array(self._run(plan), dtype=np.int32), device_s=1e-3 * plan.tokens, moved=moved)

    def close(self) -> None:
        self.queue.clear()

    def _run(self, plan: Plan) -> list[int]:
        for row in plan.ends:
            del self.rows[row]
        self._move(plan, Toward.HOST)
        for start in plan.starts:
            self._start(start)
        for grow in plan.grows:
            table = self.rows[grow.row].tables[grow.group]
            assert grow.at <= len(table)
            table[grow.at : grow.at + len(grow.blocks)] = grow.blocks
        self._move(plan, Toward.DEVICE)
        for copy in plan.copies:
            self.stores[copy.group].copy(copy.source, copy.target)
        samples = [self._pass(self.rows[row], len(self.rows[row].tokens)) for row in plan.decode.rows]
        for i, chunk in enumerate(plan.chunks):
            row = self.rows[chunk.row]
            assert chunk.start == row.done
            token = self._pass(row, chunk.stop, is_sampling=i in plan.sampling_chunks)
            if i in plan.sampling_chunks:
                samples.append(token)
        return samples

    def _move(self, plan: Plan, toward: Toward) -> None:
        for move in (move for move in plan.moves if move.toward is toward):
            here, there = self.stores[move.group], self.host_stores[move.group]
            if toward is Toward.HOST:
                there.take(move.host_block, here, move.block)
            else:
                here.take(move.block, there, move.host_block)

    def _start(self, start: RowStart) -> None:
        assert start.row not in self.rows, f"row {start.row} started twice"
        tables = [list(table) for table in start.blocks]
        self.rows[start.row] = GroupRow(list(start.tokens), tables, start.seed, start.computed_tokens)

    def _pass(self, row: GroupRow, stop: int, is_sampling: bool = True) -> int:
        states = states_of(row.tokens)
        for store, table in zip(self.stores, row.tables, strict=True):
            store.check(table, states, row.done)
            store.write(table, states, row.done, stop)
        row.done = stop
        if is_sampling:
            assert stop == len(row.tokens)
            row.tokens.append(next_token(row.tokens, row.seed))
        return row.tokens[-1]
