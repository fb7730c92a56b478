"""An executor whose tokens are a hash of all tokens before them, read back through the block tables.

So every mistake in tables, copies, prefix hits, preemption or the order of plans shows as a wrong token, without any
tensor. State is kept per layer: a pass cut along the layers must have written each of them.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from penstock.core.executor import ModelFacts, StateKind, StateSpec, StepResult, Ticket
from penstock.core.plan import Chunk, Plan, Toward

VOCAB = 50_000
N_LAYERS = 3
BLOCK_TOKENS = 4


def next_token(tokens: Sequence[int], seed: int = 0) -> int:
    """The one token that follows `tokens` in the language of the oracle."""
    digest = blake2b(array("i", tokens).tobytes() + seed.to_bytes(8, "little"), digest_size=4).digest()
    return int.from_bytes(digest, "little") % VOCAB


def continuation(prompt: Sequence[int], n: int, seed: int = 0) -> list[int]:
    """The first `n` outputs for a prompt."""
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(next_token(tokens, seed))
    return tokens[len(prompt) :]


def facts(max_model_tokens: int = 512, stop_token_ids: frozenset[int] = frozenset()) -> ModelFacts:
    spec = StateSpec(
        name="kv", kind=StateKind.PAGED, layers=tuple(range(N_LAYERS)), block_tokens=BLOCK_TOKENS, block_bytes=64
    )
    return ModelFacts(
        name="oracle",
        n_layers=N_LAYERS,
        vocab_size=VOCAB,
        max_model_tokens=max_model_tokens,
        stop_token_ids=stop_token_ids,
        states=(spec,),
        weight_bytes=0,
    )


@dataclass
class Row:
    tokens: list[int]
    table: list[int]
    seed: int
    position: int  # of the next decode step
    last: int | None = None
    done_layers: int = 0


@dataclass
class OracleExecutor:
    """Runs a plan at `collect`, in order; so what is submitted must not depend on what the host does meanwhile."""

    facts: ModelFacts = field(default_factory=facts)
    max_rows: int = 8

    def __post_init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.store: list[dict[tuple[int, int], int]] = []
        self.queue: deque[Plan] = deque()
        self.plans: list[Plan] = []

    def allocate(self, n_blocks: tuple[int, ...], n_host_blocks: tuple[int, ...] = ()) -> None:
        self.n_blocks = n_blocks[0]
        self.store = [{} for _ in range(N_LAYERS)]
        self.host_store = [{} for _ in range(N_LAYERS)]

    def submit(self, plan: Plan) -> Ticket:
        self.queue.append(plan)
        self.plans.append(plan)
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
            assert start.row not in self.rows, f"row {start.row} started twice"
            table = list(start.blocks[0])
            self.rows[start.row] = Row(list(start.tokens), table, start.seed, start.computed_tokens)
        for grow in plan.grows:
            table = self.rows[grow.row].table
            assert grow.at == len(table)
            table.extend(grow.blocks)
        self._move(plan, Toward.DEVICE)
        for copy in plan.copies:
            for layer in self.store:
                for offset in range(BLOCK_TOKENS):
                    if (copy.source, offset) in layer:
                        layer[copy.target, offset] = layer[copy.source, offset]
        samples = [self._decode(self.rows[row]) for row in plan.decode.rows]
        for i, chunk in enumerate(plan.chunks):
            self._prefill(chunk)
            if i in plan.sampling_chunks:
                samples.append(self._sample(self.rows[chunk.row], chunk.stop))
        return samples

    def _move(self, plan: Plan, toward: Toward) -> None:
        for move in (move for move in plan.moves if move.toward is toward):
            for here, there in zip(self.store, self.host_store, strict=True):
                is_out = toward is Toward.HOST
                (source, at), (target, to) = ((here, move.block), (there, move.host_block))[:: 1 if is_out else -1]
                for offset in range(BLOCK_TOKENS):
                    target[to, offset] = source.get((at, offset), -1)

    def _decode(self, row: Row) -> int:
        assert row.last is not None
        self._write(row, row.position, row.last, 0, N_LAYERS)
        return self._sample(row, row.position + 1)

    def _prefill(self, chunk: Chunk) -> None:
        row = self.rows[chunk.row]
        stop_layer = N_LAYERS if chunk.stop_layer is None else chunk.stop_layer
        assert chunk.first_layer == row.done_layers
        for position in range(chunk.start, chunk.stop):
            self._write(row, position, row.tokens[position], chunk.first_layer, stop_layer)
        row.done_layers = stop_layer % N_LAYERS

    def _write(self, row: Row, position: int, token: int, first: int, stop: int) -> None:
        block, offset = row.table[position // BLOCK_TOKENS], position % BLOCK_TOKENS
        for layer in self.store[first:stop]:
            layer[block, offset] = token

    def _sample(self, row: Row, tokens: int) -> int:
        read = [
            [layer.get((row.table[p // BLOCK_TOKENS], p % BLOCK_TOKENS), -1) for p in range(tokens)]
            for layer in self.store
        ]
        assert all(of_layer == read[0] for of_layer in read), "a layer missed a token"
        row.position = tokens
        row.last = next_token(read[0], row.seed)
        return row.last
