"""However a scheduler interleaves them, sequences put out what each would alone, decoded without pages or chunks."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from penstock.core.errors import EngineDied
from penstock.core.executor import StateKind, TokenLogprobs
from penstock.core.plan import Chunk, DecodeGroup, Plan, RowStart
from penstock.core.request import SamplingParams
from penstock.runtime import layout, logits, rows, sampling, step, transfer, transforms
from penstock.runtime.executor import TorchExecutor
from penstock.runtime.readback import Stopwatch

from .driver import Driver, Job, expected_outputs
from .toy import MAX_TOKENS, STOP, VOCAB, ToyDecoder

CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0.0)
SEEDS = st.integers(0, 2**32)


@contextmanager
def executing(model: Any, max_rows: int = 4) -> Iterator[TorchExecutor]:
    executor = TorchExecutor(model, model.facts, new_pool=model.new_pool, max_rows=max_rows, device=CPU)
    try:
        yield executor
    finally:
        executor.close()


def greedy(rng: Random) -> SamplingParams:
    return GREEDY


def sampled(rng: Random) -> SamplingParams:
    """Every filter, stops that may not come too early, and everything that changes the logits."""
    ids = list(range(VOCAB))
    return SamplingParams(
        temperature=rng.choice([0.0, 0.3, 1.0, 5.0]),
        top_k=rng.choice([0, 0, 1, 5]),
        top_p=rng.choice([1.0, 1.0, 0.5]),
        min_p=rng.choice([0.0, 0.0, 0.2]),
        min_tokens=rng.choice([0, 0, 3, 9]),
        stop_token_ids=rng.choice([(), (3, 4, 5, 6, 7, 8, VOCAB + 5)]),
        ignore_eos=rng.random() < 0.5,
        logprobs=rng.choice([None, 0, 3]),
        prompt_logprobs=rng.choice([None, 2]),
        presence_penalty=rng.choice([0.0, 0.0, 2.0, -0.7]),
        frequency_penalty=rng.choice([0.0, 0.0, 1.3, -0.4]),
        repetition_penalty=rng.choice([1.0, 1.0, 2.5, 0.4]),
        logit_bias=rng.choice([(), tuple((t, rng.uniform(-9, 9)) for t in rng.sample(ids, rng.randint(1, VOCAB)))]),
        allowed_token_ids=rng.choice([None, None, tuple(rng.choices(ids, k=rng.randint(1, 2 * VOCAB)))]),
        bad_word_ids=rng.choice([(), tuple(random_words(rng, rng.randint(1, 30)))]),
    )


def random_words(rng: Random, n_words: int) -> Iterator[tuple[int, ...]]:
    """Of a few ids, so that they do come up."""
    for _ in range(n_words):
        yield tuple(rng.choices(range(rng.choice([3, VOCAB])), k=rng.choice([1, 2, 2, 3, 5])))


def random_jobs(rng: Random, n_jobs: int, params: Callable[[Random], SamplingParams]) -> list[Job]:
    """Some share their prompt."""
    prompts = [[rng.randrange(VOCAB) for _ in range(rng.choice([1, 2, 3, 4, 5, 8, 9, 17]))] for _ in range(n_jobs)]
    return [
        Job(
            prompt=rng.choice(prompts),
            n_outputs=rng.randint(1, 9),
            sampling=params(rng),
            seed=rng.randrange(-(2**63), 2**63),
        )
        for _ in range(n_jobs)
    ]


def check(model: ToyDecoder, jobs: list[Job], rng: Random, **driving: Any) -> None:
    with executing(model) as executor:
        Driver(executor, rng, **driving).run(jobs)
    for job in jobs:
        assert job.outputs == expected_outputs(model, job)


@pytest.mark.parametrize("params", [greedy, sampled])
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_sequences_put_out_what_each_would_alone(seed, params):
    rng = Random(seed)
    check(ToyDecoder(), random_jobs(rng, rng.randint(1, 8), params), rng, depth=rng.randint(1, 3))


@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_long_bad_words_are_seen_however_often_a_sequence_is_stopped(seed):
    """Outputs of two ids, longer than the ring that remembers them."""
    rng = Random(seed)
    jobs = []
    for _ in range(4):
        words = tuple(tuple(rng.choices((3, 4), k=rng.choice([4, 5, 7]))) for _ in range(6))
        cycle = tuple((3, 4, 4)[k % 3] for k in range(32))
        asked = SamplingParams(
            temperature=rng.choice([0.0, 1.0]), allowed_token_ids=(3, 4), bad_word_ids=(*words, cycle, cycle[1:])
        )
        jobs.append(Job(prompt=[rng.choice((3, 4))] * 3, n_outputs=rng.randint(30, 58), sampling=asked, seed=seed))
    check(ToyDecoder(), jobs, rng, stop_frac=0.1, n_blocks=80)


@pytest.mark.parametrize("n_jobs", [1, 4])
@pytest.mark.parametrize(
    "driving",
    [
        {"max_chunk_tokens": MAX_TOKENS, "layer_cut_frac": 0.0, "stop_frac": 0.0, "pause_frac": 0.0, "depth": 1},
        {"max_chunk_tokens": 1, "layer_cut_frac": 0.0},
        {"max_chunk_tokens": 5, "layer_cut_frac": 0.0},
        {"max_chunk_tokens": MAX_TOKENS, "layer_cut_frac": 1.0},
        {"stop_frac": 0.9},
        {"pause_frac": 0.9},
    ],
    ids=["whole", "one by one", "chunked", "cut at every layer", "stopped often", "paused often"],
)
@settings(max_examples=6, deadline=None)
@given(seed=SEEDS)
def test_one_way_of_planning_alone_gives_the_same_tokens(seed, driving, n_jobs):
    rng = Random(seed)
    check(ToyDecoder(), random_jobs(rng, n_jobs, greedy), rng, **driving)


@pytest.mark.parametrize(
    "kinds",
    [
        (StateKind.WINDOWED, StateKind.WINDOWED),
        (StateKind.RECURRENT, StateKind.RECURRENT),
        (StateKind.PAGED, StateKind.WINDOWED, StateKind.PAGED, StateKind.RECURRENT, StateKind.RECURRENT),
    ],
    ids=["windowed", "recurrent", "hybrid"],
)
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_block_tables_serve_windows_and_recurrent_states_too(seed, kinds):
    rng = Random(seed)
    jobs = random_jobs(rng, 5, greedy)
    for job in jobs:
        job.n_outputs *= 3  # far beyond the window: its blocks come round again
    check(ToyDecoder(kinds), jobs, rng)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_seeded_samples_do_not_depend_on_neighbours(seed):
    rng = Random(seed)
    hot = SamplingParams(temperature=3.0)
    prompt = [rng.randrange(VOCAB) for _ in range(5)]
    outputs = []
    for n_neighbours in (0, 3):
        job = Job(prompt=prompt, n_outputs=8, sampling=hot, seed=11)
        with executing(ToyDecoder()) as executor:
            Driver(executor, rng).run([*random_jobs(rng, n_neighbours, sampled), job])
        outputs.append(job.outputs)
    assert outputs[0] == outputs[1]


def check_logprobs(record: TokenLogprobs, token: int, logprobs_V: torch.Tensor, count: int) -> None:
    assert record.token == token
    assert record.logprob == pytest.approx(float(logprobs_V[token]), abs=1e-5)
    assert record.rank == 1 + int((logprobs_V > logprobs_V[token]).sum())
    top = logprobs_V.topk(count)
    assert [token for token, _ in record.top] == top.indices.tolist()
    assert [logprob for _, logprob in record.top] == pytest.approx(top.values.tolist(), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_logprobs_are_those_of_the_raw_distribution(seed):
    rng = Random(seed)
    model = ToyDecoder()
    jobs = random_jobs(rng, 5, sampled)
    check(model, jobs, rng)
    for job in jobs:
        expected_TV = model.reference(job.prompt + job.outputs).log_softmax(-1)
        if job.sampling.logprobs is not None:
            assert len(job.logprobs) == job.n_outputs
            for at, record in enumerate(job.logprobs):
                row_V = expected_TV[len(job.prompt) + at - 1]
                check_logprobs(record, job.outputs[at], row_V, job.sampling.logprobs)


@pytest.mark.parametrize("head_positions", [2, 512])
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_prompt_logprobs_cover_every_token_after_the_first(seed, head_positions):
    rng = Random(seed)
    model = ToyDecoder()
    jobs = random_jobs(rng, 5, lambda rng: SamplingParams(temperature=0.0, prompt_logprobs=rng.choice([None, 0, 4])))
    with pytest.MonkeyPatch.context() as patch, executing(model) as executor:
        patch.setattr(step, "HEAD_POSITIONS", head_positions)
        Driver(executor, rng, fork_frac=0.0).run(jobs)  # a fork computes the end of its prompt only
    for job in jobs:
        count = job.sampling.prompt_logprobs
        assert len(job.prompt_logprobs) == (0 if count is None else len(job.prompt) - 1)
        expected_TV = model.reference(job.prompt).log_softmax(-1)
        for at, record in enumerate(job.prompt_logprobs):
            check_logprobs(record, job.prompt[at + 1], expected_TV[at], count)


def start(row: int, prompt: list[int], blocks: tuple[int, ...], sampling: SamplingParams = GREEDY) -> RowStart:
    return RowStart(
        row=row,
        tokens=array("i", prompt),
        prompt_tokens=len(prompt),
        computed_tokens=0,
        blocks=(blocks,),
        sampling=sampling,
        seed=0,
    )


def prefill(plan_id: int, row_start: RowStart, ends: tuple[int, ...] = ()) -> Plan:
    chunk = Chunk(row=row_start.row, start=0, stop=len(row_start.tokens))
    return Plan(id=plan_id, ends=ends, starts=(row_start,), chunks=(chunk,), sampling_chunks=(0,))


def test_a_row_and_its_blocks_serve_the_next_sequence_in_the_same_plan():
    model, prompts = ToyDecoder(), ([5, 6, 7, 8, 9], [4, 3])
    with executing(model, max_rows=1) as executor:
        executor.allocate((2,))
        tickets = [
            executor.submit(prefill(1, start(0, prompts[0], (0, 1)))),
            executor.submit(prefill(2, start(0, prompts[1], (1,)), ends=(0,))),
        ]
        found = [executor.collect(ticket).tokens.tolist() for ticket in tickets]
    assert found == [[int(model.reference(prompt)[-1].argmax())] for prompt in prompts]


def test_a_decoding_row_that_changes_hands_decodes_for_its_new_sequence():
    model, hot = ToyDecoder(), SamplingParams(temperature=5.0)
    with executing(model) as executor:
        executor.allocate((2,))
        executor.collect(executor.submit(prefill(1, start(0, [7], (0,)))))
        group = DecodeGroup((0,), 1)
        executor.collect(executor.submit(Plan(id=2, decode=group)))
        handed = replace(start(0, [9], (1,), hot), seed=5)  # of one token: its first step may be a decode
        result = executor.collect(executor.submit(Plan(id=3, decode=group, ends=(0,), starts=(handed,))))
    assert result.tokens.tolist() == expected_outputs(model, Job(prompt=[9], n_outputs=1, sampling=hot, seed=5))


def test_a_model_is_asked_every_few_steps_whether_it_computes_otherwise_now(monkeypatch):
    asked = []

    class Asked(ToyDecoder):
        def review(self) -> bool:
            asked.append(step_of_now)
            return True

    monkeypatch.setattr(step, "REVIEW_STEPS", 3)
    with executing(Asked()) as executor:
        executor.allocate((4,))
        for step_of_now in range(1, 8):
            plan = prefill(1, start(0, [7], (0,))) if step_of_now == 1 else Plan(decode=DecodeGroup((0,), 1))
            executor.collect(executor.submit(plan))
    assert asked == [3, 6]


def test_an_unfinished_pass_ends_with_its_sequence():
    halves = [Chunk(row=0, start=0, stop=2, stop_layer=1), Chunk(row=0, start=0, stop=2, first_layer=1)]
    with executing(ToyDecoder()) as executor:
        executor.allocate((2,))
        first = start(0, [5, 6], (0,))
        executor.collect(executor.submit(Plan(id=1, starts=(first,), chunks=(halves[0],))))
        broken = executor.submit(Plan(id=2, ends=(0,), starts=(first,), chunks=(halves[1],)))
        with pytest.raises(AssertionError, match="has not begun"):
            executor.collect(broken)


def test_min_tokens_hold_the_stop_ids_back_unless_they_do_not_stop():
    model = ToyDecoder()
    model.head[:, STOP] = 0.0
    model.head[:, :STOP] = model.head[:, STOP + 1 :] = 0.0  # all logits equal: the lowest allowed id wins
    stops = {
        SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=(0, 1)): [3, 3, 0],
        SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=(0, 1), ignore_eos=True): [2, 2, 0],
    }
    for params, expected in stops.items():
        job = Job(prompt=[9, 9], n_outputs=3, sampling=params)
        with executing(model) as executor:
            Driver(executor, Random(0)).run([job])
        assert job.outputs == expected


def test_a_steady_decode_sends_nothing(monkeypatch):
    def no_send(*_: Any) -> Any:
        raise AssertionError("sent")

    with executing(ToyDecoder()) as executor:
        executor.allocate((4,))
        hot = SamplingParams(
            temperature=1.0, top_k=3, min_tokens=5, stop_token_ids=(1,), logprobs=1, frequency_penalty=0.5,
            logit_bias=((1, 2.0),), allowed_token_ids=(1, 2, 3, 4), bad_word_ids=((3, 4), (2,)),
        )  # fmt: skip
        for row in range(2):
            executor.collect(executor.submit(prefill(row, start(row, [5, 6], (2 * row, 2 * row + 1), hot))))
        group = DecodeGroup((0, 1), 1)
        executor.collect(executor.submit(Plan(id=3, decode=group)))
        for module in (layout, logits, rows, sampling, step, transfer, transforms):
            for name in ("send", "send_all"):
                monkeypatch.setattr(module, name, no_send, raising=False)
        for plan_id in (4, 5):
            assert len(executor.collect(executor.submit(Plan(id=plan_id, decode=group))).tokens) == 2


class Gated(ToyDecoder):
    """Layers wait until the gate opens; a token of id `STOP` breaks the step."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def run_layers(self, x_TD, batch, kv, first, stop):
        assert self.gate.wait(timeout=60)
        if bool((x_TD == self.table[STOP]).all(-1).any()):
            raise ArithmeticError("the device is on fire")
        return super().run_layers(x_TD, batch, kv, first, stop)


def test_submit_does_not_wait_for_the_step():
    model = Gated()
    with executing(model) as executor:
        executor.allocate((4,))
        tokens = array("i", [5, 6])
        row_start = RowStart(
            row=0, tokens=tokens, prompt_tokens=2, computed_tokens=0, blocks=((0,),), sampling=GREEDY, seed=0
        )
        first = executor.submit(prefill(1, row_start))
        second = executor.submit(Plan(id=2, decode=DecodeGroup((0,), 1)))
        tokens.append(9)  # the scheduler's own array goes on growing
        model.gate.set()
        outputs = [int(executor.collect(ticket).tokens[0]) for ticket in (first, second)]
    assert outputs == expected_outputs(model, Job(prompt=[5, 6], n_outputs=2))


def test_a_broken_step_is_raised_and_every_later_one_fails_by_name():
    model = Gated()
    model.gate.set()
    with executing(model) as executor:
        executor.allocate((4,))
        tickets = [
            executor.submit(prefill(1, start(0, [5], (0,)))),
            executor.submit(prefill(2, start(1, [STOP], (1,)))),
            executor.submit(Plan(id=3, decode=DecodeGroup((0,), 1))),
        ]
        assert len(executor.collect(tickets[0]).tokens) == 1
        with pytest.raises(ArithmeticError, match="on fire"):
            executor.collect(tickets[1])
        for ticket in (tickets[2], executor.submit(Plan(id=4))):
            with pytest.raises(EngineDied, match=r"step 2 failed before it: ArithmeticError\('the device is on fire"):
                executor.collect(ticket)


def test_a_step_that_breaks_on_the_device_ends_the_executor_too(monkeypatch):
    def broken_wait_s(self: Stopwatch) -> float:
        raise RuntimeError("illegal memory access")

    with executing(ToyDecoder()) as executor:
        executor.allocate((4,))
        first = executor.submit(prefill(1, start(0, [5], (0,))))
        with monkeypatch.context() as patch:
            patch.setattr(Stopwatch, "wait_s", broken_wait_s)
            with pytest.raises(RuntimeError, match="illegal memory access"):
                executor.collect(first)
        with pytest.raises(EngineDied, match="step 1 failed before it"):
            executor.collect(executor.submit(Plan(id=2, decode=DecodeGroup((0,), 1))))


def test_close_ends_the_thread_though_results_wait():
    before = threading.active_count()
    model = Gated()
    model.gate.set()
    with executing(model) as executor:
        executor.allocate((4,))
        executor.submit(prefill(1, start(0, [5], (0,))))
    assert threading.active_count() == before


@pytest.mark.parametrize("n_blocks", [(), (0,), (3, 3)])
def test_allocate_wants_a_positive_number_for_each_group(n_blocks):
    with executing(ToyDecoder()) as executor, pytest.raises(ValueError, match="for each of 1 state groups"):
        executor.allocate(n_blocks)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (Chunk(row=0, start=0, stop=3), "goes beyond the 2 tokens"),
        (Chunk(row=1, start=0, stop=1), "no sequence has it"),
        (Chunk(row=0, start=0, stop=2, first_layer=1), "has not begun"),
    ],
    ids=["beyond the known tokens", "of an empty row", "in the middle of no pass"],
)
def test_an_impossible_chunk_breaks_its_step(chunk, message):
    with executing(ToyDecoder()) as executor:
        executor.allocate((4,))
        ticket = executor.submit(Plan(starts=(start(0, [5, 6], (0,)),), chunks=(chunk,)))
        with pytest.raises(AssertionError, match=message):
            executor.collect(ticket)
