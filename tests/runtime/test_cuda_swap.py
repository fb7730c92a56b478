"""The host tier of an accelerator: pinned memory, a stream of its own, and the same content as if all were in order."""

from __future__ import annotations

import json
from array import array
from random import Random

import pytest
import torch

from penstock.core.clock import VirtualClock
from penstock.core.plan import BlockMove, Chunk, Plan, RowStart, Toward
from penstock.core.request import Request, SamplingParams
from penstock.engine.loop import build_engine
from penstock.models.weights import load_model
from penstock.policy.presets import build_policies
from penstock.runtime.build import build_executor

from .driver import Job, expected_outputs
from .late_lane import LateLane
from .real import WholeForward, shrunk_config
from .test_movers import carry_out

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
OPTIONS = {"dtype": "float32", "device": "cuda", "load_format": "dummy"}


@pytest.mark.parametrize("seed", range(3))
def test_moves_beside_the_steps_leave_what_moves_in_order_would(seed):
    wanted = carry_out(torch.device("cpu"), LateLane(0), seed)
    for got, want in zip(carry_out(torch.device("cuda"), None, seed), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=0, rtol=0)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(shrunk_config()))
    return tmp_path


def test_those_who_were_swapped_go_on_as_if_nothing_had_happened(folder):
    rng = Random(5)
    jobs = [Job(prompt=[rng.randrange(61) for _ in range(rng.randint(1, 40))], n_outputs=20) for _ in range(24)]
    executor = build_executor(
        folder, kv_memory_bytes=2**24, host_kv_memory_bytes=2**24, max_rows=6, block_tokens=4, **OPTIONS
    )
    policies = build_policies(options={"preempt": {"swap_below": 1e9}, "batch": {"budget_tokens": 24}})
    engine = build_engine(executor, (40,), policies, n_host_blocks=(200,), clock=VirtualClock())
    outputs: dict[str, list[int]] = {}
    for k, job in enumerate(jobs):
        sampling = SamplingParams(max_tokens=job.n_outputs, temperature=0.0, ignore_eos=True)
        engine.add(Request(id=str(k), prompt=job.prompt, sampling=sampling))  # type: ignore[arg-type]
    while engine.has_work:
        for update in engine.step():
            outputs.setdefault(update.request_id, []).extend(update.tokens)
        engine.scheduler.audit()
    counters = engine.counters()
    engine.close()
    whole = WholeForward(load_model(folder, **OPTIONS), executor.facts)
    assert [outputs[str(k)] for k in range(len(jobs))] == [expected_outputs(whole, job) for job in jobs]
    assert counters["swaps_out_total"] == counters["swaps_in_total"] > 3


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_submitting_moves_never_waits_for_the_device(folder):
    executor = build_executor(
        folder, kv_memory_bytes=2**24, host_kv_memory_bytes=2**24, max_rows=5, block_tokens=4, **OPTIONS
    )
    moves = tuple(BlockMove(0, block, block + 3, Toward.HOST) for block in range(100))
    back = tuple(BlockMove(0, block + 200, block + 3, Toward.DEVICE) for block in range(100))
    start = RowStart(
        row=0, tokens=array("i", [5, 6, 7]), prompt_tokens=3, computed_tokens=0, blocks=((200,),),
        sampling=SamplingParams(), seed=0,
    )  # fmt: skip
    plans = [
        Plan(id=1, moves=moves),
        Plan(id=2, moves=back, starts=(start,), chunks=(Chunk(row=0, start=0, stop=3),), sampling_chunks=(0,)),
        Plan(id=3, ends=(0,)),
    ]
    torch.cuda.set_sync_debug_mode("error")
    try:
        tickets = [executor.submit(plan) for plan in plans]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    moved = [entry for ticket in tickets for entry in executor.collect(ticket).moved]
    executor.close()
    assert [plan_id for plan_id, _ in moved] == [1, 2]
    assert all(seconds > 0 for _, seconds in moved)
