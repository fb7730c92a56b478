"""Runs single steps on an executor, one plan ahead as the engine does, and times copies between the tiers."""

from __future__ import annotations

import statistics
from array import array
from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from penstock.core.executor import StateSpec, StepResult
from penstock.core.plan import NO_DECODE, BlockMove, Chunk, DecodeGroup, Plan, RowStart, Toward
from penstock.core.request import SamplingParams
from penstock.cost.follow import PlanLoads
from penstock.cost.load import StepLoad
from penstock.cost.profile import Sample
from penstock.profiling.points import Point
from penstock.runtime.executor import TorchExecutor

WARM_UPS = 2
LEAST_REPEATS, MOST_REPEATS = 3, 9
POINT_S = 0.2  # spent on a point, if that is enough for the least repeats
QUIET_PERCENT = 25
MOVED_BYTES = 2**28  # at most, of one measurement of a copy
MOST_WAITS = 1000


class Bench:
    """Prompts are not computed: rows start as if their state lay in their blocks. sampling: of all rows."""

    def __init__(self, executor: TorchExecutor, sampling: SamplingParams) -> None:
        self._executor = executor
        self._sampling = sampling
        self._loads = PlanLoads(executor.facts)
        self._n_plans = 0
        self._decode = NO_DECODE

    def measure(self, point: Point) -> Sample | None:
        """The lower quartile of some runs, for what else the machine does only adds; None if a pool has no room for the
        point."""
        grown = point.context + WARM_UPS + MOST_REPEATS + 1
        stop = point.before + point.chunk
        spans = [(point.context, grown)] * point.rows + [(point.before, stop)]
        tables = self._tables(spans)
        if tables is None:
            return None
        self._decode = DecodeGroup(tuple(range(point.rows)), version=self._n_plans)
        starts = [self._start(row, point.context, point.context - 1, tables[row]) for row in range(point.rows)]
        self._collected([Plan(starts=tuple(starts))])
        warm_up = self._repeated(point, tables[-1], WARM_UPS)
        n = int(POINT_S / max(1e-9, warm_up[-1][1].device_s))
        found = self._repeated(point, tables[-1], min(MOST_REPEATS, max(LEAST_REPEATS, n)))
        self._collected([Plan(ends=tuple(range(point.rows)))])
        seconds = [result.device_s for _, result in found]
        return Sample(found[len(found) // 2][0], float(np.percentile(seconds, QUIET_PERCENT)))

    def _repeated(self, point: Point, table: tuple[tuple[int, ...], ...], n: int) -> list[tuple[StepLoad, StepResult]]:
        """The point's step, one after the other; what chunks started is over at the end."""
        if not point.chunk:
            return self._collected([Plan(decode=self._decode)] * n)
        row, stop = point.rows, point.before + point.chunk
        plan = Plan(
            decode=self._decode,
            starts=(self._start(row, stop, point.before, table),),
            chunks=(Chunk(row=row, start=point.before, stop=stop),),
            sampling_chunks=(0,),
        )
        found = self._collected([plan] + [replace(plan, ends=(row,))] * (n - 1))
        self._collected([Plan(ends=(row,))])
        return found

    def bytes_per_s(self, toward: Toward) -> float | None:
        """Of copies to the host tier or back; None without one."""
        executor = self._executor
        if not executor.n_host_blocks:
            return None
        spec = executor.facts.states[0]
        n = max(1, min(executor.n_blocks[0], executor.n_host_blocks[0], MOVED_BYTES // spec.block_bytes))
        moves = tuple(BlockMove(0, block, block, toward) for block in range(n))
        seconds = [self._moved_s(moves) for _ in range(WARM_UPS + LEAST_REPEATS)][WARM_UPS:]
        return n * spec.block_bytes / statistics.median(seconds)

    def _moved_s(self, moves: tuple[BlockMove, ...]) -> float:
        results = [result for _, result in self._collected([Plan(moves=moves)])]
        for _ in range(MOST_WAITS):
            for result in results:
                for _, seconds in result.moved:
                    return seconds
            results = [result for _, result in self._collected([Plan()])]
        raise AssertionError("copies to the host tier never ended")

    def _collected(self, plans: Sequence[Plan]) -> list[tuple[StepLoad, StepResult]]:
        """The load and the result of each plan; one is out besides the one that is waited for."""
        tickets = []
        found: list[tuple[StepLoad, StepResult]] = []
        loads = []
        for plan in plans:
            self._n_plans += 1
            loads.append(self._loads.follow(plan))
            tickets.append(self._executor.submit(plan))
            if len(tickets) > len(found) + 1:
                found.append((loads[len(found)], self._executor.collect(tickets[len(found)])))
        found.append((loads[-1], self._executor.collect(tickets[-1])))
        return found

    def _start(self, row: int, tokens: int, computed: int, blocks: tuple[tuple[int, ...], ...]) -> RowStart:
        ids = array("i", (3 + (7919 * (row + i)) % 250 for i in range(tokens)))
        return RowStart(
            row=row, tokens=ids, prompt_tokens=tokens, computed_tokens=computed, blocks=blocks,
            sampling=self._sampling, seed=row,
        )  # fmt: skip

    def _tables(self, spans: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, ...], ...]] | None:
        """Block tables of rows that go on behind `first` tokens up to `stop`; None if a pool is too small."""
        used = [0] * len(self._executor.n_blocks)
        tables = []
        for first, stop in spans:
            of_groups = []
            for group, spec in enumerate(self._executor.facts.states):
                table = [0] * -(-stop // spec.block_tokens)
                for entry in _held(spec, first, len(table)):
                    if used[group] == self._executor.n_blocks[group]:
                        return None
                    table[entry] = used[group]
                    used[group] += 1
                of_groups.append(tuple(table))
            tables.append(tuple(of_groups))
        return tables


def _held(spec: StateSpec, first: int, n_entries: int) -> Sequence[int]:
    """Entries of a table that a row behind `first` tokens still reads or writes: not those behind a window."""
    if spec.window_tokens is None:
        return range(n_entries)
    sinks = min(spec.sink_blocks, n_entries)
    recent = max(sinks, max(0, first - spec.window_tokens + 1) // spec.block_tokens)
    return [*range(sinks), *range(recent, n_entries)]
