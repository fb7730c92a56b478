"""One decoder, every family: transformers is the oracle, and however a pass is cut, the logits stay."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.core.executor import StateKind
from penstock.models.facts import model_facts
from penstock.models.weights import load_model, weight_bytes
from tests.models.checkpoints import MAKERS, VOCAB_SIZE, expected_logits
from tests.models.paged_run import PagedRun

ATOL = 1e-4
each_family = pytest.mark.parametrize("name", MAKERS)
few = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def random_ids(n_tokens: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCAB_SIZE), k=n_tokens)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=ATOL, rtol=0)


@pytest.fixture(scope="session")
def decoder_of(checkpoint):
    loaded = {}

    def load(name):
        if name not in loaded:
            loaded[name] = load_model(checkpoint(name)[1])
        return loaded[name]

    return load


@each_family
def test_a_whole_prompt_gives_the_logits_of_transformers(name, checkpoint, decoder_of):
    ids = random_ids(150)
    logits = PagedRun(decoder_of(name), [ids], 16).step({0: 150})[0]
    assert logits.dtype == torch.float32
    close(logits, expected_logits(checkpoint(name)[0], ids))
    assert logits.abs().max() > 3


@each_family
def test_decoding_token_by_token_equals_one_pass(name, checkpoint, decoder_of):
    ids = random_ids(24)
    run = PagedRun(decoder_of(name), [ids], 4)
    logits = torch.cat([run.step({0: 1})[0] for _ in ids])
    close(logits, expected_logits(checkpoint(name)[0], ids))


@each_family
@given(block_tokens=st.sampled_from([1, 4, 16]), data=st.data())
@few
def test_chunks_at_any_cut_equal_one_pass(name, block_tokens, data, checkpoint, decoder_of):
    n_tokens = data.draw(st.sampled_from([1, 15, 16, 17, 50]), label="tokens")
    cuts = data.draw(
        st.sets(st.integers(1, n_tokens - 1), max_size=5) if n_tokens > 1 else st.just(set()), label="cuts"
    )
    ids = random_ids(n_tokens, seed=n_tokens)
    run = PagedRun(decoder_of(name), [ids], block_tokens, seed=len(cuts))
    stops = [*sorted(cuts), n_tokens]
    logits = [run.step({0: stop - start})[0] for start, stop in zip([0, *stops], stops, strict=False)]
    close(torch.cat(logits), expected_logits(checkpoint(name)[0], ids))


@each_family
@given(data=st.data())
@few
def test_sequences_in_one_ragged_batch_do_not_disturb_each_other(name, data, checkpoint, decoder_of):
    sequences = [random_ids(n, seed=n) for n in data.draw(st.lists(st.integers(1, 40), min_size=2, max_size=5))]
    run = PagedRun(decoder_of(name), sequences, 8)
    found: list[list[torch.Tensor]] = [[] for _ in sequences]
    while any(row.done < len(row.ids) for row in run.rows):
        left = {at: len(row.ids) - row.done for at, row in enumerate(run.rows) if row.done < len(row.ids)}
        take = {at: data.draw(st.one_of(st.just(1), st.integers(1, n))) for at, n in left.items()}
        for at, logits in run.step(take).items():
            found[at].append(logits)
    for ids, logits in zip(sequences, found, strict=True):
        close(torch.cat(logits), expected_logits(checkpoint(name)[0], ids))


@each_family
def test_a_batch_of_decodes_equals_each_alone(name, checkpoint, decoder_of):
    sequences = [random_ids(n, seed=n) for n in (1, 2, 16, 17, 33, 60)]
    run = PagedRun(decoder_of(name), sequences, 16)
    run.step({at: len(ids) - 1 for at, ids in enumerate(sequences) if len(ids) > 1})
    last = run.step(dict.fromkeys(range(len(sequences)), 1))
    for at, ids in enumerate(sequences):
        close(last[at][0], expected_logits(checkpoint(name)[0], ids)[-1])


@pytest.mark.parametrize("cut", range(5))
@pytest.mark.parametrize("name", ["llama3-gqa", "deepseek-v2", "gemma2", "olmo2", "qwen2-windows", "qwen3-moe-mixed"])
@torch.inference_mode()
def test_a_pass_cut_between_layers_goes_on_after_others_ran(name, cut, checkpoint, decoder_of):
    decoder = decoder_of(name)
    paused, other = random_ids(30, seed=1), random_ids(20, seed=2)
    run = PagedRun(decoder, [paused, other], 8)
    run.step({0: 10})
    take = {0: 20}
    batch = run.batch(take)
    x = decoder.run_layers(run.embed(take), batch, run.kv, 0, cut)
    others = [run.step({1: 15})[1], run.step({1: 5})[1]]
    logits = decoder.logits(decoder.run_layers(x, batch, run.kv, cut, 4))
    close(logits, expected_logits(checkpoint(name)[0], paused)[10:])
    close(torch.cat(others), expected_logits(checkpoint(name)[0], other))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(dtype, checkpoint):
    model, folder = checkpoint("qwen3")
    ids = random_ids(40)
    decoder = load_model(folder, dtype=dtype)
    logits = PagedRun(decoder, [ids], 16).step({0: 40})[0]
    assert logits.dtype == torch.float32
    error = (logits - expected_logits(model, ids)).abs().mean()
    assert error < {"bfloat16": 0.1, "float16": 0.015}[dtype]


def test_facts_say_what_decisions_need(checkpoint, decoder_of):
    decoder = decoder_of("qwen3")
    size_bytes = weight_bytes(decoder.spec)
    facts = model_facts(
        decoder.spec, "tiny", block_tokens=8, kv_item_bytes=torch.bfloat16.itemsize, weight_bytes=size_bytes
    )
    (state,) = facts.states
    assert (facts.name, facts.n_layers, facts.vocab_size, facts.max_model_tokens) == ("tiny", 4, VOCAB_SIZE, 256)
    assert facts.weight_bytes == 4 * sum(p.numel() for p in checkpoint("qwen3")[0].parameters()) + QK_NORM_ROWS_BYTES
    assert (state.kind, state.layers) == (StateKind.PAGED, (0, 1, 2, 3))
    assert state.block_bytes == 4 * 2 * 8 * 2 * 32 * 2  # layers, k and v, tokens, heads, head dim, bytes


QK_NORM_ROWS_BYTES = 4 * 4 * 32 * (4 + 2 - 2)  # a row per head instead of one for queries and one for keys


@pytest.mark.parametrize("name", ["llama3-gqa", "mixtral", "olmoe", "gpt-oss", "deepseek-v2"])
def test_a_model_of_8_bit_integers_is_close_to_its_model(name, checkpoint, decoder_of):
    ids = random_ids(40)
    found = PagedRun(load_model(checkpoint(name)[1], quantize="int8"), [ids], 16).step({0: 40})[0]
    expected = PagedRun(decoder_of(name), [ids], 16).step({0: 40})[0]
    # four layers of large random weights multiply every rounding; unrelated logits would be off by 1.4
    assert (found - expected).norm() < 0.35 * expected.norm()
