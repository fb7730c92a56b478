"""Sinks and a window against the definition: layers keep old keys and values, and places are those in the cache."""

from __future__ import annotations

import io
from array import array

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from penstock.core.errors import ConfigError, UnsupportedModel
from penstock.core.executor import StateKind, StateSpec
from penstock.core.plan import Plan, RowStart
from penstock.core.request import Request, SamplingParams
from penstock.demonstrations.streaming_llm import perplexities, show_stream, unseen_text
from penstock.engine.loop import build_engine
from penstock.models.parts import Entrance
from penstock.models.read_spec import read_model_spec
from penstock.models.rope import Rotation
from penstock.models.streaming import with_sinks
from penstock.models.weights import load_model
from penstock.ops.rope.reference import rope
from penstock.policy.presets import build_policies
from penstock.runtime.build import build_executor
from penstock.runtime.layout import Layout
from penstock.runtime.rows import Rows
from tests.models.checkpoints import VOCAB_SIZE, make_model, save

LENGTH = 60


def ids(n: int = LENGTH) -> list[int]:
    return torch.randint(0, VOCAB_SIZE, (n,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(make_model("llama3-gqa"), tmp_path_factory.mktemp("model"))


def kept(n_seen: int, sinks: int, window: int) -> list[int]:
    """The definition, as a list."""
    cache: list[int] = []
    for token in range(n_seen):
        cache.append(token)
        if len(cache) > sinks + window:
            del cache[sinks]
    return cache


def test_the_example_of_the_paper():
    assert kept(9, 4, 3) == [0, 1, 2, 3, 6, 7, 8]


@pytest.mark.parametrize("sinks", [0, 1, 4, 6])
@pytest.mark.parametrize("window", [1, 3, 8])
def test_a_token_reads_what_the_definition_keeps(sinks, window):
    """Slots of sinks and window, as the kernels get them, are those of the kept tokens, however the sequence is cut."""
    spec = StateSpec(
        name="w", kind=StateKind.WINDOWED, layers=(0,), block_tokens=4, block_bytes=1, window_tokens=window,
        sink_tokens=sinks, chunk_tokens=8,
    )  # fmt: skip
    rows = Rows(max_rows=2, states=(spec,), max_model_tokens=100, device=torch.device("cpu"))
    tables = tuple(range(30, 55))  # block of the k-th four tokens
    tokens = array("i", range(100))
    start = RowStart(
        row=1, tokens=tokens, prompt_tokens=100, computed_tokens=0, blocks=(tables,), sampling=SamplingParams(), seed=0
    )
    rows.apply(Plan(starts=(start,)), [torch.arange(100, dtype=torch.int32).numpy()])
    for first, n in ((0, 1), (0, 7), (5, 1), (8, 9), (41, 2), (99, 1), (60, 40)):
        rows.place(torch.tensor([1]).numpy(), torch.tensor([first]).numpy())
        (batch,) = Layout(torch.tensor([1]).numpy(), torch.tensor([n]).numpy(), torch.device("cpu")).batches(rows)
        (kv_len,) = batch.kv_lens_host
        slots = [int(block) * 4 + offset for block in batch.tables_SB[0] for offset in range(4)][:kv_len]
        for i in range(n):
            last = kv_len - n + i
            read = slots[max(0, last + 1 - window) : last + 1]
            if batch.sinks is not None:
                read = batch.sinks.slots_TK[i][batch.sinks.is_seen_TK[i]].tolist() + read
                assert batch.sinks.positions_T[i] == len(kept(first + i + 1, sinks, window)) - 1
            wanted = [tables[token // 4] * 4 + token % 4 for token in kept(first + i + 1, sinks, window)]
            assert read == wanted, (first, i)


@torch.inference_mode()
def brute_force(folder, tokens, sinks, window):
    """Logits [tokens, vocabulary]: token by token, with raw keys that are rotated anew by their places in the cache."""
    decoder = load_model(folder, dtype="float32")
    attention = decoder.spec.layers[0].attention
    h, n_q, n_kv = attention.head_dim, attention.q_heads, attention.kv_heads
    rotation = Rotation.of(attention.rope, torch.device("cpu"))
    caches: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in decoder.spec.layers]
    logits = []
    for token in tokens:
        x = decoder.embed(torch.tensor([token]))
        for layer, cache in zip(decoder._layers, caches, strict=True):
            normed = layer.input_norm(x)[0]
            qkv = torch.nn.functional.linear(normed, layer.attention.qkv).view(-1, h)
            q, k, v = qkv.split([n_q, n_kv, n_kv])
            cache.append((k, v))
            if len(cache) > sinks + window:
                del cache[sinks]
            places = rotation.angles(torch.arange(len(cache)))
            keys = rope(torch.stack([k for k, _ in cache]), *places)
            values = torch.stack([v for _, v in cache])
            query = rope(q.unsqueeze(0), *(part[-1:] for part in places))[0]
            shared = n_q // n_kv
            scores = torch.einsum("hd,lhd->hl", query, keys.repeat_interleave(shared, 1)) * attention.scale
            mixed = torch.einsum("hl,lhd->hd", scores.softmax(-1), values.repeat_interleave(shared, 1))
            x = x + torch.nn.functional.linear(mixed.flatten(), layer.attention.out)
            x = x + layer.mlp(Entrance(x, None, layer.mlp_norm))[0]
        logits.append(decoder.logits(x)[0])
    return torch.stack(logits)


def served(folder, prompt, n_outputs=0, budget_tokens=512, **options):
    """(log-probabilities of the prompt's tokens, and of greedy outputs; the outputs)."""
    executor = build_executor(folder, dtype="float32", kv_memory_bytes=1 << 22, block_tokens=4, **options)
    policies = build_policies(options={"batch": {"budget_tokens": budget_tokens}})
    engine = build_engine(executor, executor.n_blocks, policies)
    sampling = SamplingParams(
        max_tokens=max(1, n_outputs), temperature=0.0, ignore_eos=True, logprobs=0, prompt_logprobs=0
    )
    engine.add(Request(id="a", prompt=prompt, sampling=sampling))
    updates = []
    while engine.has_work:
        updates += engine.step()
    engine.close()
    of_prompt = [entry.logprob for update in updates for entry in update.prompt_logprobs]
    outputs = [token for update in updates for token in update.tokens]
    of_outputs = [entry.logprob for update in updates for entry in update.logprobs]
    return of_prompt, of_outputs[:n_outputs], outputs[:n_outputs]


@settings(max_examples=6, deadline=None)
@given(
    sinks=st.sampled_from([0, 1, 4]),
    window=st.sampled_from([3, 8]),
    budget_tokens=st.sampled_from([1, 5, 512]),
    prompt_tokens=st.sampled_from([2, 11, 40]),
)
def test_what_a_stream_computes_is_the_definition(folder, sinks, window, budget_tokens, prompt_tokens):
    options = {"sink_tokens": sinks, "window_tokens": window}
    tokens = ids(prompt_tokens)
    of_prompt, of_outputs, outputs = served(folder, tokens, LENGTH - prompt_tokens, budget_tokens, **options)
    wanted = brute_force(folder, [*tokens, *outputs], sinks, window).log_softmax(-1)
    following = torch.tensor([*tokens[1:], *outputs])
    assert outputs == wanted.argmax(-1)[prompt_tokens - 1 : -1].tolist()
    expected = wanted[:-1].gather(1, following.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(torch.tensor([*of_prompt, *of_outputs]), expected, atol=1e-4, rtol=0)


def test_before_anything_is_left_behind_all_bits_are_those_of_the_ordinary_model(folder):
    tokens = ids(20)
    assert served(folder, tokens, 10, sink_tokens=4, window_tokens=30) == served(folder, tokens, 10)
    assert served(folder, tokens, 12, sink_tokens=4, window_tokens=30) != served(folder, tokens, 12)


def test_old_keys_stay_as_they_were_computed(folder):
    """Computing the kept text alone is another model: its keys never saw what was left behind."""
    tokens = ids(40)
    streamed, *_ = served(folder, tokens, sink_tokens=2, window_tokens=6)
    again, *_ = served(folder, [tokens[k] for k in kept(40, 2, 6)])
    assert abs(streamed[-1] - again[-1]) > 1e-3


def test_what_left_the_window_of_every_layer_is_gone(folder):
    """Two prompts that differ there alone go on alike; the full model tells them apart."""
    tokens = ids()
    other = [*tokens[:10], (tokens[10] + 1) % VOCAB_SIZE, *tokens[11:]]
    passed_on = 10 + 4 * (6 - 1)  # the last token that hears of it: four layers, each looks back by five
    for options, is_gone in (({"sink_tokens": 2, "window_tokens": 6}, True), ({}, False)):
        (a, *_), (b, *_) = served(folder, tokens, **options), served(folder, other, **options)
        assert a[passed_on - 1] != b[passed_on - 1]
        assert (a[passed_on + 1 :] == b[passed_on + 1 :]) == is_gone


@pytest.mark.parametrize(
    ("sinks", "window", "words"),
    [
        (4, 300, "more than the 256 that the model was trained for"),
        (4, 0, "window_tokens is 0"),
        (-1, 5, "sink_tokens -1"),
    ],
)
def test_what_makes_no_stream_is_refused(folder, sinks, window, words):
    with pytest.raises(ConfigError, match=words):
        with_sinks(read_model_spec(folder), sinks, window)


def test_a_model_of_windows_has_no_use_for_another(tmp_path):
    spec = read_model_spec(save(make_model("mistral"), tmp_path))
    with pytest.raises(UnsupportedModel, match="every layer of this model reads a window already"):
        with_sinks(spec, 4, 100)


def test_the_demonstration_shows_a_stream_that_holds_no_more_blocks_with_time():
    shown = io.StringIO()
    show_stream(Console(file=shown, width=100), 2500, kept_tokens=64)
    blocks = [int(line.split("│")[3]) for line in shown.getvalue().splitlines() if line.startswith("│")]
    assert len(blocks) == 10
    assert max(blocks) == blocks[-1] <= 1 + 60 // 16 + 2


def test_the_demonstration_reads_text_beyond_the_trained_length():
    within, behind = perplexities(unseen_text(2300), window_tokens=60, sink_tokens=4)
    assert 1 < within < 20
    assert 1 < behind < 20
