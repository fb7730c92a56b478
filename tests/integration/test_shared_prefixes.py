"""Decoding rows that read common prefixes once: the same tokens as alone, and what is read is counted."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, settings

from penstock.core.clock import VirtualClock
from penstock.core.errors import ConfigError, UnknownName
from penstock.core.request import Request, SamplingParams
from penstock.demonstrations.hydragen import Tree, compare
from penstock.engine.loop import Engine, build_engine
from penstock.options import EngineOptions
from penstock.policy.presets import build_policies
from penstock.runtime import build
from penstock.runtime.build import build_executor
from penstock.runtime.cascade import Rates
from tests.engine.unruly import Outcome
from tests.models.checkpoints import VOCAB_SIZE, make_model, save

from .test_equivalence import CONTEXT, MAX_NEW_TOKENS, PROMPTS, scenarios, serve_and_compare

EAGER = Rates(read_bytes_per_s=1.0, flop_per_s=1e30, step_s=0.0, run_s=0.0)  # one block of two rows is worth it
FAMILIES = ("llama3-gqa", "qwen3", "gemma2", "gpt-oss", "deepseek-v2")  # windows, sinks and a latent among them
BLOCK_TOKENS = 4


def rates(of_cpu: Rates) -> dict[str, Rates]:
    """Another test of this process may have loaded the C++ kernels."""
    return {"cpu": of_cpu, "native": of_cpu}


@pytest.fixture(autouse=True)
def _eager():
    """Every shared block is shared; else only long prefixes of many rows are."""
    with mock.patch.object(build, "RATES", rates(EAGER)):
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return cache(lambda family: save(make_model(family), tmp_path_factory.mktemp(family)))


def engine_of(folder, choice: str, max_rows: int = 24, share_prefixes: bool = True, **policy: int) -> Engine:
    executor = build_executor(
        folder, dtype="float32", kv_memory_bytes=1 << 22, max_rows=max_rows, block_tokens=BLOCK_TOKENS,
        max_model_tokens=CONTEXT, shared_prefix_attention=choice,
    )  # fmt: skip
    policies = build_policies(options={"batch": policy} if policy else {})
    return build_engine(executor, executor.n_blocks, policies, share_prefixes=share_prefixes, clock=VirtualClock())


def answers(
    engine: Engine, prompts: list[list[int]], n: int = 1, max_tokens: int = 12, salts: str = "", name: str = "r"
) -> list[list[int]]:
    """Greedy answers of all samples, in order."""
    outcome = Outcome()
    for k, ids in enumerate(prompts):
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, n=n)
        salt = salts[k] if salts else ""
        engine.add(Request(id=f"{name}{k}", prompt=ids, sampling=sampling, arrival_s=0.0, cache_salt=salt))  # type: ignore[arg-type]
    while engine.has_work:
        for update in engine.step():
            outcome.note(update)
        engine.scheduler.audit()
    return [outcome.tokens[f"{name}{k}", index] for k in range(len(prompts)) for index in range(n)]


def serve(engine: Engine, prompts: list[list[int]], **how: int) -> list[list[int]]:
    """`answers` of an engine that serves nothing else."""
    found = answers(engine, prompts, **how)
    engine.close()
    return found


def text(n: int, seed: int) -> list[int]:
    return torch.randint(0, VOCAB_SIZE, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("tree", [[1, 4], [2, 4, 8], [3, 3, 6]], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_trees_of_prompts_get_the_tokens_of_rows_that_read_alone(folders, family, tree):
    """tree: prompts of each level. Their lengths end within blocks, at their ends, and behind."""
    prompts = [text(9, 1)]
    for level, width in enumerate(tree):
        prompts = [prompts[k * len(prompts) // width] + text(7 + 5 * k % 9, 10 * level + k) for k in range(width)]
    read, found = {}, {}
    for choice in ("on", "off"):
        engine = engine_of(folders(family), choice)
        found[choice] = serve(engine, prompts, n=2)
        read[choice] = engine.counters()["decode_keys_read_total"], engine.counters()["decode_keys_saved_total"]
    alone = [serve(engine_of(folders(family), "on", share_prefixes=False), [ids])[0] for ids in prompts]
    assert found["on"] == found["off"] == [tokens for tokens in alone for _ in range(2)]
    assert read["off"][1] == 0
    assert read["on"][1] > 0
    assert sum(read["on"]) == read["off"][0]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@scenarios
def test_tokens_are_the_same_through_preemption_cancels_swaps_and_cut_passes(folders, family, **scenario):
    serve_and_compare(folders(family), alone(folders, family), **scenario, shared_prefix_attention="on")


@cache
def _alone(folder) -> list[list[int]]:
    return [
        serve(engine_of(folder, "off", share_prefixes=False), [ids], max_tokens=MAX_NEW_TOKENS)[0] for ids in PROMPTS
    ]


def alone(folders, family) -> list[list[int]]:
    return _alone(folders(family))


def test_a_group_reads_its_prefix_once_and_its_own_tokens_each(folders):
    """b rows behind P shared tokens read P + the sum of their own, not b P + that sum."""
    n_rows, max_tokens = 6, 8
    prefix = text(8 * BLOCK_TOKENS, 1)
    prompts = [prefix + text(3, 100 + k) for k in range(n_rows)]
    engine = engine_of(folders("qwen3"), "on", budget_tokens=1000)
    answers(engine, [prefix + text(1, 5)], max_tokens=1, name="first")  # so that all find it and decode together
    serve(engine, prompts, max_tokens=max_tokens)
    counters = engine.counters()
    n_steps = max_tokens - 1  # the first token comes with the prompt
    own = [len(ids) - len(prefix) for ids in prompts]
    wasted = counters["decode_tokens_total"] - n_rows * n_steps  # rows that ran on while their end was not known
    assert wasted == 0
    assert counters["decode_keys_saved_total"] == n_steps * (n_rows - 1) * len(prefix)
    assert counters["decode_keys_read_total"] == sum(
        len(prefix) + sum(mine + step for mine in own) for step in range(1, n_steps + 1)
    )


def test_prompts_with_different_salts_share_nothing(folders):
    for salts, is_shared in (("abcd", False), ("aabb", True)):
        engine = engine_of(folders("qwen3"), "on")
        for name in ("first", "second"):  # the second time, all find their prompt in the cache and decode together
            before = engine.counters()["decode_keys_saved_total"]
            answers(engine, [text(20, 1)] * 4, salts=salts, name=name)
        assert (engine.counters()["decode_keys_saved_total"] > before) is is_shared
        engine.close()


def test_short_prefixes_of_few_rows_are_left_alone_by_the_real_rule(folders):
    with mock.patch.object(build, "RATES", rates(replace(EAGER, read_bytes_per_s=1e10, run_s=1e-4))):
        engine = engine_of(folders("qwen3"), "on")
        serve(engine, [text(20, 1)], n=4)
    assert engine.counters()["decode_keys_saved_total"] == 0


def test_choices_that_there_are_not_are_refused(folders):
    with pytest.raises(UnknownName, match="shared_prefix_attention"):
        engine_of(folders("qwen3"), "always")
    with mock.patch.object(build, "RATES", {"cuda": EAGER}), pytest.raises(ConfigError, match="no kernel for it"):
        engine_of(folders("qwen3"), "on")


def test_the_demonstration_compares_the_same_answers_with_and_without():
    tree = Tree("small", ((400, 1), (100, 2)), 6)
    options = EngineOptions(dtype="float32", kv_memory="16MiB", threads=1)
    name, kernels, read, without, *times, same = compare(tree, options, 4)
    assert (name, kernels, same) == ("small", "torch, f32", "6/6")
    assert len(times) == 3
    assert 3 * int(read.removesuffix("k")) < int(without.removesuffix("k"))
