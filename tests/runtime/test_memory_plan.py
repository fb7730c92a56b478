from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.errors import ConfigError
from penstock.core.executor import ModelFacts, StateKind, StateSpec
from penstock.runtime.memory_plan import (
    GIB,
    KIB,
    MIB,
    MemoryPlan,
    default_kv_bytes,
    free_ram_bytes,
    parse_bytes,
    plan_memory,
    show_bytes,
    useful_kv_bytes,
    with_host_tier,
)


def facts(max_model_tokens: int = 4096) -> ModelFacts:
    state = StateSpec(name="kv", kind=StateKind.PAGED, layers=(0,), block_tokens=16, block_bytes=64 * KIB)
    return ModelFacts(
        name="toy",
        n_layers=1,
        vocab_size=10,
        max_model_tokens=max_model_tokens,
        stop_token_ids=frozenset(),
        states=(state,),
        weight_bytes=14 * MIB,
    )


def plan(kv_bytes: int | None, *, free_bytes: int = 8 * GIB, max_model_tokens: int = 4096) -> MemoryPlan:
    return plan_memory(
        facts(max_model_tokens), free_bytes=free_bytes, default_kv_bytes=GIB, kv_bytes=kv_bytes, max_rows=64
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GiB", 4 * GIB),
        ("512MiB", 512 * MIB),
        ("2G", 2 * 10**9),
        ("2 gb", 2 * 10**9),
        ("3Ki", 3 * KIB),
        ("1.5GiB", 3 * GIB // 2),
        ("123", 123),
        (456, 456),
        ("7B", 7),
    ],
)
def test_amounts_of_memory_are_read(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1", "4 giga", "1e9", "4GiB more", "nan", ".5G", -5])
def test_what_is_no_amount_of_memory_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="such as 4GiB, 512MiB or 2G"):
        parse_bytes(text)


@given(n_bytes=st.integers(1, 2**50))
def test_a_shown_amount_reads_back_to_within_its_digits(n_bytes):
    assert parse_bytes(show_bytes(n_bytes)) == pytest.approx(n_bytes, rel=0.005)


def test_a_small_pool_limits_the_longest_prompt():
    small = plan(100 * 64 * KIB)
    assert small.n_blocks == (100,)
    assert small.kv_bytes == 100 * 64 * KIB
    assert small.longest_prompt_tokens == 1599
    assert [small.concurrency(tokens) for tokens in (1, 16, 17, 1600, 1601)] == [64, 64, 50, 1, 0]


def test_the_plan_is_said_in_words():
    assert plan(None).describe() == (
        "weights: 14.00 MiB",
        "KV pool: 1.00 GiB, 16384 blocks of 16 tokens",
        "longest prompt: 4095 tokens (limited by the model's context)",
        "at once: 64 sequences of 2048 tokens (at most 64)",
    )
    assert plan(100 * 64 * KIB).describe()[2:] == (
        "longest prompt: 1599 tokens (limited by the KV pool)",
        "at once: 1 sequences of 1600 tokens (at most 64)",
    )


def test_a_pool_below_one_short_sequence_is_refused_with_what_it_takes():
    with pytest.raises(
        ConfigError, match=r"hold 240 tokens of toy, less than one sequence of 256; give at least 1\.00 MiB"
    ):
        plan(16 * 64 * KIB - 1)
    assert plan(16 * 64 * KIB).longest_tokens == 256


def test_a_short_model_needs_no_more_than_its_context():
    assert plan(64 * KIB, max_model_tokens=8).longest_tokens == 8


def test_the_host_tier_is_divided_like_the_pools_and_said_in_words():
    small = with_host_tier(plan(100 * 64 * KIB), 250 * 64 * KIB, 8 * GIB)
    assert small.n_host_blocks == (250,)
    assert small.host_kv_bytes == 250 * 64 * KIB
    assert small.describe()[2] == "host tier: 15.62 MiB, 250% of the KV pool, for what is swapped or evicted"
    assert with_host_tier(plan(None), 0, 8 * GIB) == plan(None), "none is taken unless asked for"


def test_a_host_tier_that_does_not_fit_or_holds_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"9\.00 GiB of --host-kv-memory do not fit: 8\.00 GiB of host memory"):
        with_host_tier(plan(None), 9 * GIB, 8 * GIB)
    with pytest.raises(ConfigError, match=r"hold no block of 16 tokens; give at least 64\.00 KiB, or 0"):
        with_host_tier(plan(None), 63 * KIB, 8 * GIB)


def test_more_memory_than_is_free_is_refused():
    with pytest.raises(ConfigError, match=r"9\.00 GiB of KV memory do not fit: 8\.00 GiB are free"):
        plan(9 * GIB)


def test_the_default_leaves_a_laptop_its_memory():
    assert default_kv_bytes(8 * GIB, is_cpu=True, useful_bytes=GIB) == 2 * GIB
    assert default_kv_bytes(128 * GIB, is_cpu=True, useful_bytes=GIB) == 4 * GIB
    assert 32 * GIB < default_kv_bytes(40 * GIB, is_cpu=False, useful_bytes=900 * GIB) < 40 * GIB


def test_a_small_model_takes_no_whole_gpu_by_default():
    useful_bytes = useful_kv_bytes(facts(max_model_tokens=1000), max_rows=3)
    assert useful_bytes == 4 * 3 * 63 * 64 * KIB
    assert default_kv_bytes(100 * GIB, is_cpu=False, useful_bytes=useful_bytes) == useful_bytes


def files(root: Path, **contents: str) -> Path:
    for name, text in contents.items():
        path = root / {"meminfo": "proc/meminfo"}.get(name, f"sys/fs/cgroup/memory.{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = "MemTotal:       100 kB\nMemFree:        20 kB\nMemAvailable:   40 kB\n"


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({}, None),
        ({"meminfo": MEMINFO}, 40 * KIB),
        ({"meminfo": MEMINFO, "max": "max\n", "current": "5000\n"}, 40 * KIB),
        ({"meminfo": MEMINFO, "max": "30000\n", "current": "5000\n"}, 25000),
        ({"meminfo": MEMINFO, "max": "30000\n", "current": "35000\n"}, 0),
    ],
    ids=["unknown system", "no container", "container without limit", "container", "container over its limit"],
)
def test_free_memory_respects_the_container(tmp_path, contents, expected):
    assert free_ram_bytes(files(tmp_path, **contents)) == expected
