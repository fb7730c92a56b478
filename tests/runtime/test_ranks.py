"""Ranks in processes: how they are told, watched and ended. The ranks here are small programs without a model."""

from __future__ import annotations

import io
import sys
import textwrap
import threading
import time
from array import array
from random import Random

import numpy as np
import psutil
import pytest
import torch

from penstock.core.errors import ConfigError, EngineDied, PenstockError, UserError
from penstock.core.plan import Chunk, DecodeGroup, Plan, RowStart
from penstock.core.request import SamplingParams
from penstock.models.weights import load_model
from penstock.runtime.build import build_executor
from penstock.runtime.crew import Crew
from penstock.runtime.peers import ProcessPeers
from penstock.runtime.rank_messages import CHECK_EVERY_STEPS, Fits, Submit, frame, read_to_rank
from tests.models.checkpoints import VOCAB_SIZE, make_model, save
from tests.models.ranks import Table, in_threads
from tests.runtime.driver import Job, expected_outputs
from tests.runtime.real import WholeForward, run_jobs
from tests.runtime.team import ThreadRanks, build_team

OURS = Fits((7, 40), (2, 9))
PLAN = Plan(id=3, decode=DecodeGroup((0, 2), 5))
RANK = """
import sys, os, numpy
from penstock.runtime.rank_messages import *
messages, out = read_to_rank(sys.stdin.buffer), sys.stdout.buffer
setup = next(messages)
assert (setup.rank, setup.size, setup.options) == (1, 2, b"options")
def say(message):
    out.write(frame(message))
    out.flush()
"""


class Watched(Crew):
    """A crew of one further rank that runs `program`."""

    def __init__(self, program: str) -> None:
        self.told: list[PenstockError] = []
        self.is_told = threading.Event()
        super().__init__([sys.executable, "-c", RANK + textwrap.dedent(program)], b"options", 2, self.take)

    def take(self, why: PenstockError) -> None:
        self.told.append(why)
        self.is_told.set()

    def wait_lost(self) -> PenstockError:
        assert self.is_told.wait(30), "nobody was told"
        with pytest.raises(PenstockError) as raised:
            self.send(PLAN)
        assert self.told == [raised.value]
        return raised.value


@pytest.fixture
def crew_of():
    made = []

    def make(program):
        made.append(Watched(program))
        return made[-1]

    yield make
    for crew in made:
        crew.close()
        assert not any(psutil.pid_exists(pid) for pid in crew.pids)


def test_ranks_take_as_many_blocks_as_all_of_them_have_room_for(crew_of):
    crew = crew_of("""
        say(Fits((9, 30), (2, 5)))
        sys.exit(7 if next(messages) == Fits((7, 30), (2, 5)) else 8)
    """)
    assert crew.agree(OURS) == Fits((7, 30), (2, 5))
    assert "ended with exit code 7" in str(crew.wait_lost())


def test_plans_cross_as_they_are():
    start = RowStart(
        row=4,
        tokens=array("i", (5, 2**31 - 1, 0)),
        prompt_tokens=2,
        computed_tokens=1,
        blocks=((3, 4), (9,)),
        sampling=SamplingParams(logit_bias=((3, -1.5),), bad_word_ids=((1, 2),), allowed_token_ids=(1, 2), logprobs=3),
        seed=2**64 - 1,
    )
    plan = Plan(id=9, starts=(start,), chunks=(Chunk(row=4, start=1, stop=3, stop_layer=2),), ends=(1,))
    assert list(read_to_rank(io.BytesIO(frame(Submit(plan)) + frame(Submit(PLAN))[:-1]))) == [Submit(plan)]


def test_a_plan_that_is_larger_than_a_pipe_arrives(crew_of):
    crew = crew_of("""
        (start,) = next(messages).plan.starts
        sys.exit(5 if list(start.tokens) == list(range(300_000)) else 6)
    """)
    tokens = array("i", range(300_000))
    start = RowStart(
        row=0, tokens=tokens, prompt_tokens=1, computed_tokens=0, blocks=((),), sampling=SamplingParams(), seed=0
    )
    crew.send(Plan(starts=(start,)))
    assert "exit code 5" in str(crew.wait_lost())


@pytest.mark.parametrize(
    ("program", "kind", "message"),
    [
        ("sys.exit(3)", EngineDied, r"rank 1 of 2 \(process \d+\) ended with exit code 3"),
        ("os.kill(os.getpid(), 9)", EngineDied, "ended by signal 9"),
        ("say(Failed('--kv-memory is too little', True)); sys.exit(2)", UserError, "^--kv-memory is too little$"),
        ("say(Failed('no more', False)); next(messages, None)", EngineDied, "rank 1 of 2 cannot go on: no more"),
        ("out.write(frame(setup)); out.flush(); next(messages, None)", EngineDied, "sent what is no message"),
    ],
)
def test_a_rank_that_ends_is_named_to_whoever_waits_for_it(crew_of, program, kind, message):
    crew = crew_of(program)
    with pytest.raises(kind, match=message):
        crew.agree(OURS)
    assert isinstance(crew.wait_lost(), kind)
    assert crew.why_lost() is crew.told[0]


FOLLOWS = """
    drew = Checksum()
    for message in messages:
        told = drew.add(numpy.array([message.plan.id % {modulus}], numpy.int32))
        if told is not None:
            say(told)
"""


def run_steps(crew, n_steps):
    for step in range(n_steps):
        crew.send(Plan(id=step))
        crew.note(np.array([step], np.int32))


def test_ranks_that_draw_alike_go_on(crew_of):
    crew = crew_of(FOLLOWS.format(modulus=1000))
    run_steps(crew, 3 * CHECK_EVERY_STEPS)
    deadline_s = time.monotonic() + 30
    while crew._unmatched and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert not crew._unmatched, "each is compared"
    crew.check()
    crew.close()
    assert not crew.told


def test_a_rank_that_draws_another_token_is_noticed(crew_of):
    crew = crew_of(FOLLOWS.format(modulus=50))  # the step 50 is the first to differ
    run_steps(crew, 2 * CHECK_EVERY_STEPS)
    assert "drew other tokens than rank 0 within the first 64 steps" in str(crew.wait_lost())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_rank_gets_the_sum_and_all_columns(dtype, tmp_path):
    """Of two ranks over real sockets, both in this process; numbers that every dtype holds exactly."""

    def work(shard):
        peers = ProcessPeers(shard, tmp_path / "meeting", torch.device("cpu"))
        ours = torch.arange(6, dtype=dtype).view(2, 3) + 10 * shard.rank
        return peers.sum(ours.clone().t()), peers.side_by_side(ours)

    for total, columns in in_threads(2, Table(2), work):
        assert total.tolist() == [[10, 16], [12, 18], [14, 20]]
        assert columns.tolist() == [[0, 1, 2, 10, 11, 12], [3, 4, 5, 13, 14, 15]]
        assert total.dtype == columns.dtype == dtype


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(make_model("qwen3"), tmp_path_factory.mktemp("qwen3"))


def test_two_ranks_draw_in_any_interleaving_what_one_pass_says(folder):
    """With chance and filters, and log-probabilities of outputs and prompt."""
    team = build_team(folder, 2, kv_memory_bytes=1 << 22, max_rows=5, block_tokens=4)
    rng = Random(5)
    jobs = [
        Job(
            prompt=[rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 30))],
            n_outputs=rng.randint(1, 8),
            sampling=SamplingParams(temperature=rng.choice([0.0, 1.0]), top_k=rng.choice([0, 9]), logprobs=2),
            seed=rng.randrange(2**63),
        )
        for _ in range(8)
    ]
    run_jobs(team, jobs, rng)
    team.close()
    whole = WholeForward(load_model(folder), team.facts)
    assert [job.outputs for job in jobs] == [expected_outputs(whole, job) for job in jobs]


def test_ranks_divide_the_memory_that_was_asked_for(folder):
    told = []
    table = Table(2)

    def build(shard):
        lines = told.append if shard.rank == 0 else (lambda plan: None)
        return build_executor(
            folder, kv_memory_bytes=1 << 22, host_kv_memory_bytes=1 << 21, ranks=ThreadRanks(shard, table),
            on_memory=lines,
        )  # fmt: skip

    first, second = in_threads(2, table, build)
    alone = build_executor(folder, kv_memory_bytes=1 << 22, host_kv_memory_bytes=1 << 21)
    for executor in (first, second):
        assert (executor.n_blocks, executor.n_host_blocks) == (alone.n_blocks, alone.n_host_blocks)
        assert 2 * executor.facts.states[0].block_bytes == alone.facts.states[0].block_bytes
        executor.close()
    alone.close()
    (plan,) = told
    assert "on each of 2 ranks" in plan.describe()[0]
    assert "KV pool: 2.00 MiB on each of 2 ranks" in plan.describe()[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "takes as many GPUs, and 0 are here"),
        ({"device": "cuda:1"}, "takes device cuda or cpu, not cuda:1"),
        ({"kv_memory_bytes": 4000}, r"1.95 KiB of KV memory on each of 2 ranks hold"),
    ],
)
def test_what_cannot_be_divided_is_said_in_one_line(folder, options, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError, match=message) as refused:
        build_team(folder, 2, **options)
    assert "\n" not in str(refused.value)
