"""Copies blocks between the pools of a device and the host tier, beside the steps.

Theory. A plan's moves look as if each had happened at its place (`core.plan.BlockMove`). On a CPU it is so: they are a
part of the step. On an accelerator they run in a *lane*, a stream of their own, while steps go on, and two rules keep
the appearance. The lane waits for all steps of earlier plans: a move reads what they wrote, and overwrites what they
read. A step waits for a move that is under way before it writes into the move's device block, or reads what it brings:
that is, when blocks under way are given to a row (`grows`), are copied, or stand in the first table of a row that is
computed now. All moves share one lane, where they happen in order, so they need not wait for each other. The host never
touches the tier's memory.

In the host tier a block of all layers of its group is one stretch of bytes. An accelerator gathers the layers first, so
that what crosses the bus is a whole block at least, and a run of consecutive host blocks at best (FastSwitch, arXiv
2411.18424, finds that launches of small copies are what costs: a page of a layer is some 32 KiB, a block some MiB).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from penstock.core.executor import StateSpec
from penstock.core.plan import BlockMove, Plan, Toward
from penstock.runtime.host_memory import HostArena
from penstock.runtime.transfer import send

AT_ONCE_BYTES = 2**26  # bounds the memory of gathering, and how long a step waits for a block among many
Moved = tuple[tuple[int, float], ...]  # (plan id, seconds)


class Mark(Protocol):
    """A point in a lane."""

    @property
    def is_reached(self) -> bool: ...

    def hold_steps(self) -> None:
        """Step work that is queued from now on comes after this point."""
        ...

    def seconds_since(self, earlier: Mark) -> float:
        """Between two points that are reached."""
        ...


class Lane(Protocol):
    """Where moves are queued, in order."""

    def follow_steps(self) -> None:
        """What is queued here from now on comes after all step work that is queued by now."""
        ...

    def run(self, work: Callable[[], None]) -> None: ...

    def mark(self) -> Mark:
        """The point behind everything that is queued here by now."""
        ...


class _Now:
    """A point in time that is reached when it is named."""

    is_reached = True

    def __init__(self) -> None:
        self._at_s = time.perf_counter()

    def hold_steps(self) -> None:
        """Nothing is under way."""

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, _Now)
        return self._at_s - earlier._at_s


class InStep:
    """The lane of a CPU: moves are a part of the step."""

    def follow_steps(self) -> None:
        """They are done."""

    def run(self, work: Callable[[], None]) -> None:
        work()

    def mark(self) -> Mark:
        return _Now()


class _StreamMark:
    def __init__(self, event: torch.Event) -> None:
        self._event = event

    @property
    def is_reached(self) -> bool:
        return bool(self._event.query())

    def hold_steps(self) -> None:
        self._event.wait()

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, _StreamMark)
        return float(earlier._event.elapsed_time(self._event)) / 1000


class SideStream:
    """The lane of an accelerator. Steps are queued on the stream that is current when this is called."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.Stream(device)

    def follow_steps(self) -> None:
        steps = torch.Event(self._device)
        steps.record()
        self._stream.wait_event(steps)

    def run(self, work: Callable[[], None]) -> None:
        with self._stream:
            work()

    def mark(self) -> Mark:
        event = torch.Event(self._device, enable_timing=True)
        event.record(self._stream)
        return _StreamMark(event)


def lane_of(device: torch.device) -> Lane:
    return InStep() if device.type == "cpu" else SideStream(device)


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """The moves of one plan."""

    plan_id: int
    start: Mark
    stop: Mark


class Mover:
    """Carries out the moves of plans and makes steps wait where they must."""

    def __init__(self, states: Sequence[StateSpec], device: torch.device, lane: Lane | None = None) -> None:
        self._states = states
        self._device = device
        self._lane = lane or lane_of(device)
        self._copy = self._copy_each if device.type == "cpu" else self._copy_gathered
        self._pools: Sequence[Tensor] = ()
        self._host_pools: list[Tensor] = []  # by group: uint8 [host blocks, bytes of a block]
        self._at: dict[int, slice] = {}  # where the bytes of a layer stand in a host block
        self._arena: HostArena | None = None
        self._under_way: deque[_UnderWay] = deque()
        self._marks: dict[tuple[int, int], Mark] = {}  # by device block, of what may be under way
        self._row_waits: dict[int, list[Mark]] = {}

    def use_pools(self, pools: Sequence[Tensor], n_host_blocks: Sequence[int]) -> None:
        """The state of each layer, block index in the second dimension, and how many host blocks each group gets."""
        self._pools = pools
        if not n_host_blocks:
            return
        shapes = [(n, self._lay_out(spec)) for n, spec in zip(n_host_blocks, self._states, strict=True)]
        self._arena = HostArena(sum(n * block_bytes for n, block_bytes in shapes), self._device)
        self._host_pools = [self._arena.zeros(shape, torch.uint8) for shape in shapes]

    def _lay_out(self, spec: StateSpec) -> int:
        """One layer of a block behind the other; the bytes of all."""
        n_bytes = 0
        for layer in spec.layers:
            layer_bytes = self._pools[layer][:, 0].numel() * self._pools[layer].dtype.itemsize
            self._at[layer] = slice(n_bytes, n_bytes + layer_bytes)
            n_bytes += layer_bytes
        return n_bytes

    def close(self) -> None:
        """Wait for what is under way and give the host memory back."""
        if self._device.type != "cpu" and self._under_way:
            torch.accelerator.synchronize(self._device)
        self._pools, self._host_pools = (), []
        self._under_way.clear()
        self._marks.clear()
        if self._arena is not None:
            self._arena.close()
            self._arena = None

    # --- the places of a plan at which it is called, in order ------------------------------------------------------
    def move_out(self, plan: Plan) -> None:
        """After the ends of rows, before anything of the plan is written."""
        for row in plan.ends:
            self._row_waits.pop(row, None)
        if plan.moves:
            self._lane.follow_steps()
            self._start = self._lane.mark()
            self._run(plan, Toward.HOST)

    def move_in(self, plan: Plan) -> None:
        """Before copies and compute."""
        if plan.moves:
            self._run(plan, Toward.DEVICE)
            self._under_way.append(_UnderWay(plan.id, self._start, self._lane.mark()))

    def hold_steps(self, plan: Plan) -> None:
        """Make what follows wait for the moves that it could collide with."""
        if not self._marks and not self._row_waits:
            return
        self._forget_reached()
        for start in plan.starts:
            named = ((g, block) for g, table in enumerate(start.blocks) for block in table)
            waits = {id(mark): mark for at in named if (mark := self._marks.get(at)) is not None}
            if waits:
                self._row_waits[start.row] = list(waits.values())
        touched = {(grow.group, block) for grow in plan.grows for block in grow.blocks}
        touched |= {(copy.group, block) for copy in plan.copies for block in (copy.source, copy.target)}
        waits = {id(mark): mark for at in touched if (mark := self._marks.get(at)) is not None}
        computed = {chunk.row for chunk in plan.chunks}
        for row in list(self._row_waits):
            if row in computed or row in plan.decode.rows:
                waits |= {id(mark): mark for mark in self._row_waits.pop(row)}
        for mark in waits.values():
            mark.hold_steps()

    def reporter(self) -> Callable[[], Moved]:
        """Tells, when the step's result is read, which plans' moves were found complete. On a CPU that is known now."""
        if isinstance(self._lane, InStep):
            moved = self._landed()
            return lambda: moved
        return self._landed

    def _landed(self) -> Moved:
        found = []
        while self._under_way and self._under_way[0].stop.is_reached:
            moves = self._under_way.popleft()
            found.append((moves.plan_id, moves.stop.seconds_since(moves.start)))
        return tuple(found)

    # --- copying ---------------------------------------------------------------------------------------------------
    def _forget_reached(self) -> None:
        self._marks = {at: mark for at, mark in self._marks.items() if not mark.is_reached}

    def _run(self, plan: Plan, toward: Toward) -> None:
        for group in range(len(self._host_pools)):
            mine = (move for move in plan.moves if move.group == group and move.toward is toward)
            ordered = _last_into_each(mine, toward)
            n_at_once = max(1, AT_ONCE_BYTES // self._host_pools[group].shape[1])
            for at in range(0, len(ordered), n_at_once):
                moves = ordered[at : at + n_at_once]
                self._lane.run(lambda moves=moves, group=group: self._copy(moves, group, toward))  # type: ignore[misc]
                mark = self._lane.mark()
                if not mark.is_reached:
                    self._marks |= {(group, move.block): mark for move in moves}

    def _copy_each(self, moves: Sequence[BlockMove], group: int, toward: Toward) -> None:
        """For a CPU, where a launch costs nothing and new memory does."""
        for layer in self._states[group].layers:
            pool, host = self._pools[layer], self.of_layer(self._host_pools[group], layer)
            for move in moves:
                if toward is Toward.HOST:
                    host[move.host_block].copy_(pool[:, move.block])
                else:
                    pool[:, move.block].copy_(host[move.host_block])

    def _copy_gathered(self, moves: Sequence[BlockMove], group: int, toward: Toward) -> None:
        """For an accelerator: whole blocks cross the bus."""
        host, hosts = self._host_pools[group], [move.host_block for move in moves]
        blocks = send(np.array([move.block for move in moves], np.int64), self._device)
        gathered = torch.empty((len(moves), host.shape[1]), dtype=torch.uint8, device=self._device)
        layers = self._states[group].layers
        if toward is Toward.HOST:
            for layer in layers:
                self.of_layer(gathered, layer).copy_(self._pools[layer].index_select(1, blocks).transpose(0, 1))
            for at, run in _runs(hosts):
                host[run].copy_(gathered[at], non_blocking=True)
        else:
            for at, run in _runs(hosts):
                gathered[at].copy_(host[run], non_blocking=True)
            for layer in layers:
                self._pools[layer].index_copy_(1, blocks, self.of_layer(gathered, layer).transpose(0, 1))

    def of_layer(self, blocks: Tensor, layer: int) -> Tensor:
        """The part of a layer in host blocks [blocks, bytes]: a view, block index in the first dimension."""
        pool = self._pools[layer]
        return blocks[:, self._at[layer]].view(pool.dtype).view(len(blocks), len(pool), *pool.shape[2:])


def _last_into_each(moves: Iterator[BlockMove], toward: Toward) -> list[BlockMove]:
    """Of several moves into one block the last one stays; in the order of host blocks, so that runs are long."""
    into = {(move.host_block if toward is Toward.HOST else move.block): move for move in moves}
    return sorted(into.values(), key=lambda move: move.host_block)


def _runs(hosts: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Runs of consecutive numbers: (where they stand in the sequence, the numbers)."""
    first = 0
    for at in range(1, len(hosts) + 1):
        if at == len(hosts) or hosts[at] != hosts[at - 1] + 1:
            yield slice(first, at), slice(hosts[first], hosts[at - 1] + 1)
            first = at
