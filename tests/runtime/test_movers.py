"""Moves beside the steps: whatever a step reads or overwrites, it waits for, and for nothing else."""

from __future__ import annotations

from array import array
from random import Random

import numpy as np
import pytest
import torch

from penstock.core.executor import StateKind, StateSpec
from penstock.core.plan import BlockCopy, BlockMove, Chunk, DecodeGroup, Plan, RowBlocks, RowStart, Toward
from penstock.core.request import SamplingParams
from penstock.runtime import movers
from penstock.runtime.host_memory import HostArena
from penstock.runtime.movers import Mover

from .late_lane import LateLane

SPECS = (
    StateSpec(name="a", kind=StateKind.PAGED, layers=(0, 2), block_tokens=4, block_bytes=1),
    StateSpec(name="b", kind=StateKind.PAGED, layers=(1,), block_tokens=4, block_bytes=1),
)
N_BLOCKS, N_HOST = 200, 150
FEW_BLOCKS, FEW_HOST, N_STEPS = 60, 40, 300
BUSY_CYCLES = 200_000  # some 100 us: longer than the host needs to queue what comes next
CPU = torch.device("cpu")


class Bench:
    """A mover whose lane is as late as it may be. Block b of a layer holds b + 1000 * layer in every place."""

    def __init__(self, lane=None):
        self.lane = lane if lane is not None else LateLane()
        self.mover = Mover(SPECS, CPU, self.lane)
        numbers = torch.arange(N_BLOCKS, dtype=torch.float32).view(1, -1, 1, 1, 1)
        self.pools = [numbers.expand(2, N_BLOCKS, 4, 1, 3).clone() + 1000 * layer for layer in range(3)]
        self.mover.use_pools(self.pools, (N_HOST, N_HOST))

    def run(self, **parts):
        plan = Plan(**parts)
        self.mover.move_out(plan)
        self.mover.move_in(plan)
        self.mover.hold_steps(plan)

    def host(self, layer, block):
        group = next(g for g, spec in enumerate(SPECS) if layer in spec.layers)
        content = self.mover.of_layer(self.mover._host_pools[group], layer)[block]
        assert content.min() == content.max()
        return float(content.min())

    def device(self, layer, block):
        content = self.pools[layer][:, block]
        assert content.min() == content.max()
        return float(content.min())


def out(block, host, group=0):
    return BlockMove(group, block, host, Toward.HOST)


def back(block, host, group=0):
    return BlockMove(group, block, host, Toward.DEVICE)


def start(row, *tables):
    return RowStart(
        row=row, tokens=array("i", [1]), prompt_tokens=1, computed_tokens=0, blocks=tables, sampling=SamplingParams(),
        seed=0,
    )  # fmt: skip


@pytest.mark.parametrize("is_gathered", [False, True])
@pytest.mark.parametrize("lane", [movers.InStep(), LateLane(0)], ids=["CPU", "late"])
def test_every_layer_of_a_group_moves_and_no_other(lane, is_gathered):
    bench = Bench(lane)
    if is_gathered:
        bench.mover._copy = bench.mover._copy_gathered
    bench.run(id=1, moves=(out(5, 9), out(6, 3), out(7, 4), out(8, 9, group=1)))
    assert [bench.host(layer, 9) for layer in range(3)] == [5, 1008, 2005]
    assert [bench.host(0, block) for block in (3, 4)] == [6, 7]
    bench.run(id=2, moves=(back(100, 9), back(101, 4), back(100, 9, group=1)))
    assert [bench.device(layer, 100) for layer in range(3)] == [5, 1008, 2005]
    assert [bench.device(layer, 101) for layer in range(3)] == [7, 1101, 2007]
    assert [plan_id for plan_id, _ in bench.mover.reporter()()] == [1, 2]
    assert bench.mover.reporter()() == ()


@pytest.fixture
def few_at_once(monkeypatch):
    """Blocks that move at once."""
    monkeypatch.setattr(movers, "AT_ONCE_BYTES", 5 * 2 * 2 * 4 * 3 * 4)
    return 5


@pytest.mark.parametrize("is_gathered", [False, True])
def test_more_blocks_than_move_at_once_all_arrive(few_at_once, is_gathered):
    bench = Bench(LateLane(0))
    if is_gathered:
        bench.mover._copy = bench.mover._copy_gathered
    n = 7 * few_at_once + 1
    hosts = np.random.default_rng(1).permutation(N_HOST)[:n].tolist()
    bench.run(id=1, moves=tuple(out(block, hosts[block]) for block in range(n)))
    assert [bench.host(2, hosts[block]) for block in range(n)] == [2000 + block for block in range(n)]


def test_of_two_moves_into_one_block_the_later_one_stays():
    bench = Bench(LateLane(0))
    bench.run(id=1, moves=(out(5, 9), out(6, 9)))
    assert bench.host(0, 9) == 6


@pytest.mark.parametrize(
    "parts",
    [
        {"grows": (RowBlocks(0, 0, 0, (5,)),)},
        {"copies": (BlockCopy(0, 1, 5),)},
        {"copies": (BlockCopy(0, 5, 1),)},
    ],
    ids=["given to a row", "copied into", "copied from"],
)
@pytest.mark.parametrize("moves", [(out(5, 9),), (back(5, 9),)], ids=["out", "in"])
def test_a_step_waits_before_it_touches_a_block_under_way(moves, parts):
    bench = Bench()
    bench.run(id=1, moves=moves)
    assert bench.lane.n_done == 0
    bench.run(id=2, grows=(RowBlocks(0, 1, 0, (5,)),), copies=(BlockCopy(1, 5, 6), BlockCopy(0, 3, 4)))
    assert bench.lane.n_done == 0, "block 5 of another group, and other blocks of this one"
    bench.run(id=3, **parts)
    assert bench.lane.n_done == 1


@pytest.mark.parametrize("computed", [{"chunks": (Chunk(row=2, start=0, stop=1),)}, {"decode": DecodeGroup((7, 2))}])
def test_a_row_that_starts_with_a_block_under_way_waits_when_it_is_computed(computed):
    bench = Bench()
    bench.run(id=1, moves=(back(5, 9), back(6, 9, group=1)), starts=(start(2, (4, 5), (6,)), start(3, (4,), ())))
    bench.run(id=2, chunks=(Chunk(row=3, start=0, stop=1),), decode=DecodeGroup((1,)))
    assert bench.lane.n_done == 0
    assert bench.mover.reporter()() == ()
    bench.run(id=3, **computed)
    assert bench.lane.n_done == 2
    assert [plan_id for plan_id, _ in bench.mover.reporter()()] == [1]
    held = bench.lane.n_held
    bench.run(id=4, **computed)
    assert bench.lane.n_held == held, "once is enough"


def test_one_who_shares_a_block_under_way_waits_too():
    bench = Bench()
    bench.run(id=1, moves=(back(5, 9),), starts=(start(2, (5,), ()),))
    bench.run(id=2, starts=(start(3, (5,), ()),), chunks=(Chunk(row=3, start=0, stop=1),))
    assert bench.lane.n_done == 1


def test_a_row_whose_sequence_is_over_waits_for_nothing():
    bench = Bench()
    bench.run(id=1, moves=(back(5, 9),), starts=(start(2, (5,), ()),))
    bench.run(id=2, ends=(2,))
    bench.run(id=3, starts=(start(2, (6,), ()),), chunks=(Chunk(row=2, start=0, stop=1),))
    assert bench.lane.n_done == 0


def test_only_the_part_of_a_long_move_that_is_needed_is_waited_for(few_at_once):
    bench = Bench()
    bench.run(id=1, moves=tuple(out(block, block) for block in range(2 * few_at_once)))
    bench.run(id=2, grows=(RowBlocks(0, 0, 0, (3,)),))
    assert bench.lane.n_done == 1


def test_the_host_tier_takes_what_was_planned_and_no_more():
    arena = HostArena(64, CPU)
    first, second = arena.zeros((2, 4), torch.float32), arena.zeros((4,), torch.float64)
    first.fill_(1.0)
    assert second.tolist() == [0.0] * 4
    with pytest.raises(AssertionError, match="more is taken"):
        arena.zeros((1,), torch.uint8)


def random_plans(rng: Random):
    """Plans, and the blocks that the step behind each writes: few, so that they meet moves all the time.

    Moved are those that no row holds, or that a row gets with the same plan.
    """
    tables: dict[int, list[int]] = {}
    for k in range(N_STEPS):
        row = rng.randrange(4)
        is_start = row not in tables or rng.random() < 0.3
        tables[row] = []
        free = sorted(set(range(FEW_BLOCKS)) - {block for table in tables.values() for block in table})
        toward = [Toward.HOST, Toward.DEVICE]
        moves = tuple(
            BlockMove(rng.randrange(2), rng.choice(free), rng.randrange(FEW_HOST), rng.choice(toward))
            for _ in range(rng.choice([0, 0, 1, 9, 80]))
        )
        tables[row] = blocks = rng.sample(free, 3)
        if is_start:
            start = RowStart(
                row=row, tokens=array("i", [1]), prompt_tokens=1, computed_tokens=0, blocks=(tuple(blocks),) * 2,
                sampling=SamplingParams(), seed=0,
            )  # fmt: skip
            yield Plan(id=k, ends=(row,), moves=moves, starts=(start,)), []
        else:
            grows = tuple(RowBlocks(row, g, 0, tuple(blocks)) for g in range(2))
            yield Plan(id=k, moves=moves, grows=grows), []
        computed = rng.choice(sorted(tables))
        yield Plan(id=N_STEPS + k, chunks=(Chunk(row=computed, start=0, stop=1),)), tables[computed]


def carry_out(device: torch.device, lane, seed: int) -> list[torch.Tensor]:
    """Every computed row adds a number to its blocks, as a step that reads and writes them."""
    rng, mover = Random(seed), Mover(SPECS, device, lane)
    pools = [torch.zeros(2, FEW_BLOCKS, 64, 1, 32, device=device) for _ in range(3)]
    mover.use_pools(pools, (FEW_HOST, FEW_HOST))
    with torch.inference_mode():
        for k, (plan, blocks) in enumerate(random_plans(rng)):
            mover.move_out(plan)
            mover.move_in(plan)
            mover.hold_steps(plan)
            if rng.random() < 0.2 and device.type == "cuda":
                torch.cuda._sleep(BUSY_CYCLES)
            for pool in pools:
                if blocks:
                    at = torch.tensor(sorted(set(blocks)), device=device)
                    pool.index_copy_(1, at, pool.index_select(1, at) * 0.5 + k + 1)
        if isinstance(lane, LateLane):
            lane.run_to(lane.n_queued)
        elif device.type == "cuda":
            torch.cuda.synchronize()
        found = [pool.cpu() for pool in pools] + [pool.clone() for pool in mover._host_pools]
    mover.close()
    return found


@pytest.mark.parametrize("seed", range(5))
def test_moves_that_come_as_late_as_they_may_leave_what_moves_in_order_would(seed):
    late = LateLane()
    wanted = carry_out(CPU, LateLane(0), seed)
    for got, want in zip(carry_out(CPU, late, seed), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=0, rtol=0)
    assert late.n_held > 100
