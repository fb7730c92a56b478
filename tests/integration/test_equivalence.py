"""The whole engine against transformers: greedy output is the same, however a request was served."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.core.clock import VirtualClock
from penstock.core.request import Request, SamplingParams
from penstock.core.sequence import FinishReason
from penstock.engine.loop import build_engine
from penstock.policy.presets import PRESETS, build_policies
from penstock.runtime.build import build_executor
from tests.engine.unruly import Outcome, RandomLayers, Restless, SwapNewest
from tests.models.checkpoints import VOCAB_SIZE, make_model, save
from tests.runtime.late_lane import LateLane
from tests.runtime.team import build_team

FAMILIES = ("llama3-gqa", "qwen3", "qwen3-moe-mixed")
MORE_FAMILIES = (
    "deepseek-v2", "gemma", "gemma2", "gemma3", "gpt-oss", "mistral", "mixtral", "olmo2", "olmoe", "phi3",
    "qwen2-windows", "qwen2-moe", "smollm3",
)  # fmt: skip
MAX_NEW_TOKENS = 14
CONTEXT = 96
STREAM = {"sink_tokens": 2, "window_tokens": 9}
PROMPT_LENGTHS = (1, 3, 7, 8, 9, 16, 17, 30, 41)


def prompts() -> list[list[int]]:
    """Lengths around the block size; all but two are prefixes of one text, so that the cache is hit."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(0, VOCAB_SIZE, (64,), generator=generator).tolist()
    other = torch.randint(0, VOCAB_SIZE, (64,), generator=generator).tolist()
    return [text[:n] for n in PROMPT_LENGTHS] + [other[:12], text[:20] + other[:9]]


PROMPTS = prompts()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """family -> (folder, the greedy continuation of every prompt by transformers)."""

    @cache
    def make(family):
        model = make_model(family)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs, about generation options that greedy decoding ignores
            wanted = [
                model.generate(
                    torch.tensor([ids]),
                    attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                    max_new_tokens=MAX_NEW_TOKENS,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                )[0, len(ids) :].tolist()
                for ids in PROMPTS
            ]
        return save(model, tmp_path_factory.mktemp(family)), wanted

    return make


requests = st.lists(
    st.tuples(
        st.integers(0, len(PROMPTS) - 1),
        st.integers(1, MAX_NEW_TOKENS),
        st.sampled_from([1, 1, 1, 2]),  # samples: greedy, so all alike
        st.integers(0, 5),  # steps before the next one arrives
        st.booleans(),  # cancelled on the way
    ),
    min_size=1,
    max_size=9,
)


scenarios = given(
    asked=requests,
    n_blocks=st.integers(24, 60),
    window_blocks=st.integers(5, 40),  # of a state group that keeps a window; what the stream's needs to go on
    max_rows=st.integers(1, 6),
    look_ahead=st.integers(0, 2),
    preset=st.sampled_from(sorted(PRESETS)),
    budget_tokens=st.sampled_from([1, 5, 16, 64]),
    cuts=st.one_of(st.none(), st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any)),
    restless=st.one_of(st.none(), st.integers(2, 5)),
    n_host_blocks=st.sampled_from([0, 8, 40]),
    is_late=st.booleans(),
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@scenarios
def test_greedy_output_is_that_of_transformers_however_a_request_was_served(reference, family, **scenario):
    serve_and_compare(*reference(family), **scenario)


@pytest.mark.parametrize("family", MORE_FAMILIES)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@scenarios
def test_so_is_that_of_every_further_family(reference, family, **scenario):
    serve_and_compare(*reference(family), **scenario)


@pytest.mark.parametrize("family", ["gemma", "qwen3-moe-mixed"])
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@scenarios
def test_so_is_that_of_two_ranks(reference, family, **scenario):
    serve_and_compare(*reference(family), **scenario, n_ranks=2)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """family -> (folder, the greedy stream behind every prompt, with sinks and a window, one after the other)."""

    @cache
    def make(family):
        folder = save(make_model(family), tmp_path_factory.mktemp(family))
        executor = build_executor(folder, dtype="float32", kv_memory_bytes=1 << 21, max_model_tokens=CONTEXT, **STREAM)
        engine = build_engine(executor, executor.n_blocks, build_policies(), share_prefixes=False)
        sampling = SamplingParams(max_tokens=MAX_NEW_TOKENS, temperature=0.0, ignore_eos=True)
        outcome = Outcome()
        for k, ids in enumerate(PROMPTS):
            engine.add(Request(id=f"r{k}", prompt=ids, sampling=sampling))
            while engine.has_work:
                for update in engine.step():
                    outcome.note(update)
        engine.close()
        return folder, [outcome.tokens[f"r{k}", 0] for k in range(len(PROMPTS))]

    return make


@pytest.mark.parametrize("family", ["llama3-gqa", "gemma2", "gpt-oss", "deepseek-v2", "smollm3"])
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@scenarios
def test_a_stream_of_sinks_and_a_window_is_the_same_however_it_was_served(streamed, family, **scenario):
    serve_and_compare(*streamed(family), **scenario, **STREAM)


@pytest.mark.parametrize(("family", "n_ranks"), [(family, 1) for family in FAMILIES + MORE_FAMILIES] + [("gemma2", 2)])
def test_those_who_were_swapped_go_on_as_if_nothing_had_happened(reference, family, n_ranks):
    """Every third step the newest one goes to the host; meanwhile evicted prefixes go there too, and come back."""
    folder, wanted = reference(family)
    executor = build_team(
        folder, n_ranks, dtype="float32", kv_memory_bytes=1 << 21, host_kv_memory_bytes=1 << 21, max_rows=5,
        block_tokens=4, max_model_tokens=CONTEXT, new_lane=lambda: LateLane(4),
    )  # fmt: skip
    policies = replace(build_policies(options={"batch": {"budget_tokens": 24}}), preempt=SwapNewest(3))
    clock = VirtualClock()
    told = tuple(30 if spec.window_tokens is None else 20 for spec in executor.facts.states)
    engine = build_engine(executor, told, policies, n_host_blocks=executor.n_host_blocks, clock=clock)
    outcome = Outcome()
    for turn in range(2):
        for k, prompt in enumerate(PROMPTS):
            sampling = SamplingParams(max_tokens=MAX_NEW_TOKENS, temperature=0.0, n=1 + k % 2, ignore_eos=True)
            engine.add(Request(id=f"{turn}.{k}", prompt=prompt, sampling=sampling, arrival_s=clock.now_s()))  # type: ignore[arg-type]
        while engine.has_work:
            clock.advance(1.0)
            assert clock.now_s() < 3000, "the engine does not come to an end"
            for update in engine.step():
                outcome.note(update)
            engine.scheduler.audit()
    engine.close()
    counters = engine.counters()
    for turn in range(2):
        for k in range(len(PROMPTS)):
            for index in range(1 + k % 2):
                assert outcome.tokens[f"{turn}.{k}", index] == wanted[k]
    assert counters["swaps_out_total"] >= counters["swaps_in_total"] > 5
    assert counters["host_moved_in_blocks_total"] > 20
    assert counters["host_kv_swapped_blocks"] == 0


def serve_and_compare(
    folder, wanted, *, asked, n_blocks, window_blocks, max_rows, look_ahead, preset, budget_tokens, cuts, restless,
    n_host_blocks, is_late, n_ranks=1, **options,
):  # fmt: skip
    policies = build_policies(preset, options={"batch": {"budget_tokens": budget_tokens}})
    if cuts is not None:
        policies = replace(policies, batch=RandomLayers(tuple(cuts)))
    if restless is not None:
        policies = replace(policies, preempt=Restless(restless))
    executor = build_team(
        folder, n_ranks, dtype="float32", kv_memory_bytes=1 << 21, host_kv_memory_bytes=1 << 21, max_rows=max_rows,
        block_tokens=4, max_model_tokens=CONTEXT, new_lane=(lambda: LateLane(3)) if is_late else None, **options,
    )  # fmt: skip
    clock = VirtualClock()
    # The scheduler is told of fewer blocks than there are, so that memory runs short.
    told = tuple(n_blocks if spec.window_tokens is None else window_blocks for spec in executor.facts.states)
    assert all(few <= have for few, have in zip(told, executor.n_blocks, strict=True))
    host = tuple(min(n_host_blocks, there) for there in executor.n_host_blocks)
    engine = build_engine(executor, told, policies, n_host_blocks=host, clock=clock, look_ahead=look_ahead)
    outcome = Outcome()

    def step() -> None:
        clock.advance(1.0)
        for update in engine.step():
            outcome.note(update)
        engine.scheduler.audit()

    cancelled = set()
    for k, (prompt, max_tokens, n, wait_steps, is_cancelled) in enumerate(asked):
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, n=n, ignore_eos=True)
        engine.add(Request(id=f"r{k}", prompt=PROMPTS[prompt], sampling=sampling, arrival_s=clock.now_s()))  # type: ignore[arg-type]
        for _ in range(wait_steps):
            step()
        if is_cancelled and k:
            engine.abort(f"r{k - 1}")
            outcome.take(engine)
            cancelled.add(k - 1)
    for _ in range(3000):
        if not engine.has_work:
            break
        step()
    assert not engine.has_work, "the engine does not come to an end"
    engine.close()
    for k, (prompt, max_tokens, n, _, _) in enumerate(asked):
        for index in range(n):
            got = outcome.tokens[f"r{k}", index]
            assert got == wanted[prompt][: len(got)]
            if k not in cancelled:
                assert got == wanted[prompt][:max_tokens]
                assert outcome.reasons[f"r{k}", index] is FinishReason.LENGTH
    assert engine.scheduler.ledger.accepted == sum(engine.scheduler.ledger.ended.values())
