"""Decode steps as CUDA graphs: what is captured gives the tokens of the same kernels one by one."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pytest
import torch

from penstock.core.plan import Plan, RowStart
from penstock.core.request import SamplingParams
from penstock.models.facts import model_facts
from penstock.models.read_spec import read_model_spec
from penstock.ops.lazy import has_triton
from penstock.runtime import build, graphs, mixed_graphs
from penstock.runtime.build import build_executor
from penstock.runtime.cascade import Rates
from penstock.runtime.graphs import Drawing, drawing_of
from penstock.runtime.mixed_graphs import MixedGraphs
from penstock.runtime.rows import Rows
from penstock.runtime.transforms import make_logits_stage

from .driver import Job
from .real import Rehearsal, assert_alike, run_jobs, shrunk_config, use_triton

EAGER = Rates(read_bytes_per_s=1.0, flop_per_s=1e30, step_s=0.0, run_s=0.0)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([{"temperature": 0.0}, {"temperature": 0.0, "top_k": 5}], Drawing.GREEDY),
        ([{"temperature": 0.0}, {"temperature": 0.6}], Drawing.PLAIN),
        ([{"temperature": 0.6}, {"temperature": 0.6, "min_p": 0.1}], Drawing.FILTERED),
        ([{"temperature": 0.6, "top_k": 5}], Drawing.FILTERED),
        ([{"temperature": 0.6, "top_p": 0.9}], Drawing.FILTERED),
        ([{"temperature": 0.0}, {"logprobs": 2}], Drawing.OUTSIDE),
        ([{"temperature": 0.0}, {"presence_penalty": 1.0}], Drawing.OUTSIDE),
    ],
)
def test_a_step_draws_in_the_least_form_that_serves_its_rows(asked, expected, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(shrunk_config()))
    facts = model_facts(
        read_model_spec(tmp_path), "tiny", block_tokens=4, kv_item_bytes=torch.float32.itemsize, weight_bytes=0
    )
    device = torch.device("cpu")
    rows = Rows(max_rows=4, states=facts.states, max_model_tokens=32, device=device)
    stage = make_logits_stage(facts, 4, device)
    starts = tuple(
        RowStart(
            row=row,
            tokens=np.array([1, 2], np.int32),
            prompt_tokens=2,
            computed_tokens=0,
            blocks=((row,),),
            sampling=SamplingParams(**params),
            seed=0,
        )
        for row, params in enumerate(asked)
    )
    plan, known = Plan(starts=starts), [np.array([1, 2], np.int32)] * len(starts)
    rows.apply(plan, known)
    stage.follow(plan, known)
    assert drawing_of(np.arange(len(starts)), rows, stage) is expected


@needs_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_captured_steps_draw_what_their_kernels_draw_one_by_one(dtype, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(shrunk_config()))
    found = []
    for is_capturing in (True, False):
        options = {"dtype": dtype, "device": "cuda", "load_format": "dummy", "max_rows": 9, "block_tokens": 4}
        executor = build_executor(tmp_path, kv_memory_bytes=2**24, **options)
        step = executor._step
        step.tape.is_on = is_capturing
        rng = Random(7)
        jobs = jobs_of_many_kinds(rng, 30)
        run_jobs(executor, jobs, rng)
        found.append([job.outputs for job in jobs])
        assert bool(step._graphs._graphs) is bool(step._mixed._graphs) is is_capturing
        executor.close()
    assert found[0] == found[1]


def jobs_of_many_kinds(rng: Random, n: int) -> list[Job]:
    """They draw in all forms."""
    return [
        Job(
            prompt=[rng.randrange(61) for _ in range(rng.randint(1, 30))],
            n_outputs=rng.randint(1, 25),
            sampling=SamplingParams(
                temperature=rng.choice([0.0, 0.0, 0.7]),
                top_k=rng.choice([0, 9]),
                logprobs=rng.choice([None, None, None, 2]),
                presence_penalty=rng.choice([0.0, 0.0, 1.5]),
            ),
            seed=rng.randrange(2**63),
        )
        for _ in range(n)
    ]


@needs_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_captured_before_they_came_draw_what_their_kernels_draw_one_by_one(dtype, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(shrunk_config()))
    monkeypatch.setattr(mixed_graphs, "TOKENS", (16, 48))
    found = []
    for is_ready in (True, False):
        options = {"dtype": dtype, "device": "cuda", "load_format": "dummy", "max_rows": 9, "block_tokens": 4}
        executor = build_executor(tmp_path, kv_memory_bytes=2**24, **options)
        step = executor._step
        step.tape.is_on = is_ready
        while executor.prepare():
            pass
        n_sizes = len(step._graphs.sizes)  # each but the first also for rows that share
        assert len(step._graphs._graphs) == (2 * n_sizes - 1 if is_ready else 0)
        assert len(step._mixed._graphs) == (2 * 3 if is_ready else 0)
        rng = Random(7)
        jobs = hot_jobs(rng, 30, most_outputs=25)
        step.tape.is_on = False
        run_jobs(executor, jobs, rng)
        found.append([job.outputs for job in jobs])
        executor.close()
    assert found[0] == found[1]


def forked_jobs(rng: Random, n: int) -> list[Job]:
    """Samples of a few prompts: most fork from one that runs, and share its blocks."""
    prompts = [[rng.randrange(61) for _ in range(n)] for n in (30, 17)]
    return [Job(prompt=prompts[k % 2], n_outputs=rng.randint(3, 9), seed=k) for k in range(n)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the next test runs the graphs themselves")
@pytest.mark.skipif(not has_triton(), reason="needs Triton, which there is for Linux only")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_shared_runs_in_a_buckets_buffers_give_the_tokens_of_reading_alone(tmp_path, monkeypatch):
    """The form that is captured, on a CPU: the kernels see the buffers, and nothing that the host knows."""
    one_layer = shrunk_config() | {"num_hidden_layers": 1, "layer_types": ["full_attention"]}  # interpreting is slow
    (tmp_path / "config.json").write_text(json.dumps(one_layer))
    monkeypatch.setattr(build, "RATES", {"cpu": EAGER, "native": EAGER})
    monkeypatch.setattr(graphs, "Tape", Rehearsal)
    options = {"dtype": "float32", "load_format": "dummy", "max_rows": 7, "block_tokens": 4, "kv_memory_bytes": 2**22}
    found = {}
    for choice in ("off", "on"):
        executor = build_executor(tmp_path, shared_prefix_attention=choice, **options)
        executor._max_rows = 6
        if choice == "on":
            step, step._max_rows = executor._step, 6  # the last row and the last block become scratch
            step._use_graphs()
            step.tape.is_on, step._mixed = False, None
            use_triton(monkeypatch)
        rng = Random(5)
        jobs = forked_jobs(rng, 14)
        for k, job in enumerate(jobs):
            job.sampling = SamplingParams(temperature=0.7, logprobs=None if k < 9 else 1)
        run_jobs(executor, jobs, rng)
        found[choice] = [(job.outputs, job.logprobs) for job in jobs]
        if choice == "on":
            assert {form.is_shared for form in step._graphs._seen} == {True, False}
        executor.close()
    assert_alike(found["on"], found["off"])


def as_on_a_gpu(tmp_path, monkeypatch):
    """Makes executors of one layer on the CPU; those that are captured run in Triton's interpreter."""
    config = shrunk_config() | {"num_hidden_layers": 1, "layer_types": ["full_attention"]}  # interpreting is slow
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(build, "RATES", {"cpu": EAGER, "native": EAGER})
    monkeypatch.setattr(graphs, "Tape", Rehearsal)
    monkeypatch.setattr(mixed_graphs, "MOST_CHUNKS", 4)
    options = {"dtype": "float32", "load_format": "dummy", "max_rows": 7, "block_tokens": 4, "kv_memory_bytes": 2**22}

    def use(is_captured, sharing):
        executor = build_executor(tmp_path, shared_prefix_attention=sharing, **options)
        executor._max_rows = executor._step._max_rows = 6  # the last row and the last block become scratch
        if is_captured:
            use_triton(monkeypatch)
            executor._step._use_graphs()
        return executor

    return use


def hot_jobs(rng, n, most_outputs=4):
    return [
        Job(
            prompt=[rng.randrange(61) for _ in range(rng.randint(1, 30))],
            n_outputs=rng.randint(1, most_outputs),
            sampling=SamplingParams(temperature=0.7),
            seed=rng.randrange(2**63),
        )
        for _ in range(n)
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the tests for CUDA run the graphs themselves")
@pytest.mark.skipif(not has_triton(), reason="needs Triton, which there is for Linux only")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_steps_are_captured_ahead_forgotten_and_left_out_where_memory_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(mixed_graphs, "TOKENS", (16, 48))
    use = as_on_a_gpu(tmp_path, monkeypatch)
    found = []
    for is_captured in (False, True):
        executor, rng = use(is_captured, "off"), Random(3)
        step, outputs = executor._step, []
        if is_captured:
            assert executor.prepare()
            while executor.prepare():
                pass
            assert {form.size for form in step._graphs._graphs} == set(step._graphs.sizes)
            ahead = {(form.tokens, form.decode_rows) for form in step._mixed._graphs}
            assert ahead == {(16, 0), (16, 6), (48, 0), (48, 6)}
            monkeypatch.setattr(mixed_graphs, "MOST_GRAPHS", 2)
        for part in range(2):
            jobs = hot_jobs(rng, 5)
            run_jobs(executor, jobs, rng)
            outputs += [job.outputs for job in jobs]
            if is_captured and part == 0:
                step.tape.is_full = True
                step._mixed._graphs.clear()
        if is_captured:
            assert not step._mixed._graphs, "something was captured, or run in a room, without memory for it"
        found.append(outputs)
        executor.close()
    assert found[0] == found[1]


def _after_an_empty_step(run):
    """As it is taken before a form is captured that was not met yet."""

    def also_empty(self, plan, *args):
        if plan.id % 4 == 0:
            room = self._room(*self._size(plan))
            room.empty()
            self._body(room, mixed_graphs._Form(room.n_tokens, room.n_decode, Drawing.PLAIN, False))
        return run(self, plan, *args)

    return also_empty


@pytest.mark.skipif(torch.cuda.is_available(), reason="the tests for CUDA run the graphs themselves")
@pytest.mark.skipif(not has_triton(), reason="needs Triton, which there is for Linux only")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_steps_with_prompts_in_a_rooms_buffers_give_the_tokens_of_steps_as_they_are(tmp_path, monkeypatch):
    """The form that is captured, on a CPU: what is left over of a room changes nothing."""
    use = as_on_a_gpu(tmp_path, monkeypatch)
    found = []
    for is_in_rooms in (False, True):
        executor = use(is_in_rooms, "on")
        step = executor._step
        if is_in_rooms:
            step.tape.is_on = False
            monkeypatch.setattr(MixedGraphs, "run", _after_an_empty_step(MixedGraphs.run))
        rng = Random(5)
        kinds = [{"temperature": 0.7}] * 4 + [{"temperature": 0.7, "top_k": 9}] * 3 + [{"logprobs": 2}]
        jobs = forked_jobs(rng, 14)
        jobs += [
            Job(
                prompt=[rng.randrange(61) for _ in range(rng.randint(1, 30))],
                n_outputs=rng.randint(1, 4),
                sampling=SamplingParams(**kind),
                seed=rng.randrange(2**63),
            )
            for kind in kinds
        ]
        run_jobs(executor, jobs, rng)
        found.append([(job.outputs, job.logprobs) for job in jobs])
        if is_in_rooms:
            forms = step._mixed._seen
            assert {form.decode_rows for form in forms} == {0, 6}
            assert {form.drawing for form in forms} == set(Drawing)
            assert {form.is_shared for form in forms} == {True, False}
        executor.close()
    assert_alike(*found)


@needs_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_captured_steps_with_shared_runs_draw_what_their_kernels_draw_one_by_one(dtype, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(shrunk_config()))
    monkeypatch.setattr(build, "RATES", {"cuda": EAGER})
    found = []
    for is_capturing in (True, False):
        options = {"dtype": dtype, "device": "cuda", "load_format": "dummy", "max_rows": 9, "block_tokens": 4}
        executor = build_executor(tmp_path, kv_memory_bytes=2**24, shared_prefix_attention="on", **options)
        executor._step.tape.is_on = is_capturing
        rng = Random(5)
        jobs = forked_jobs(rng, 60)
        run_jobs(executor, jobs, rng)
        found.append([job.outputs for job in jobs])
        captured = [*executor._step._graphs._graphs, *executor._step._mixed._graphs]
        assert any(form.is_shared for form in captured) is is_capturing
        executor.close()
    assert found[0] == found[1]
