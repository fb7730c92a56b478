"""Shared runs against dense attention over the concatenated sequence of every row."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.ops import native
from penstock.ops.merge_attention import merge_attention
from penstock.ops.paged_attention import paged_attention
from penstock.ops.shared_attention import shared_attention
from penstock.ops.shared_attention.cases import SHAPES, shared_batch
from penstock.ops.shared_attention.packing import Capacity, PlacedRun

from .rows import on_cpu

ATTENTIONS = on_cpu(shared_attention)
MERGES = on_cpu(merge_attention)
# tokens of the members of each level, the root first; the last level are the rows' own (Hydragen's own test shapes)
LEVELS = (
    [[1], [10]],
    [[3], [6, 6]],
    [[3], [6, 7]],
    [[7, 7], [9, 10, 11, 4], [129, 2, 3, 4, 5, 6, 7, 128]],
    [[16384], [1, 128, 256]],
)


def runs_of(levels: list[list[int]], block_tokens: int) -> list[tuple[int, tuple[int, ...], int]]:
    """All levels but the last, each member of which is a run of its share of the rows."""
    n_rows = len(levels[-1])
    runs = []
    for level, lengths in enumerate(levels[:-1]):
        each = n_rows // len(lengths)
        assert all(tokens % block_tokens == 0 for tokens in lengths)
        runs += [
            (tokens // block_tokens, tuple(range(k * each, (k + 1) * each)), level) for k, tokens in enumerate(lengths)
        ]
    return runs


def dense(q, kv, batch, scale):
    """Every one-token segment by itself, over its runs in order and its own keys."""
    out, lse = [], []
    for s, own in enumerate(batch.kv_lens_host):
        slots = [
            int(batch.shared.tables[run.table_start + at // batch.block_tokens]) * batch.block_tokens
            + at % batch.block_tokens
            for run in sorted(batch.shared.runs_host, key=lambda run: run.level)
            if s in batch.shared.members_M[run.first : run.stop]
            for at in range(run.keys)
        ]
        slots += [
            int(batch.tables_SB[s, at // batch.block_tokens]) * batch.block_tokens + at % batch.block_tokens
            for at in range(own)
        ]
        k, v = kv.flatten(1, 2)[:, slots].double().repeat_interleave(q.shape[1] // kv.shape[3], dim=2)
        scores = torch.einsum("hd,lhd->hl", q[s].double(), k) * scale
        out.append(torch.einsum("hl,lhd->hd", scores.softmax(-1), v))
        lse.append(scores.logsumexp(-1))
    return torch.stack(out), torch.stack(lse)


@pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS.keys())
@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("kv_heads", [1, 8])
def test_levels_equal_dense_attention_on_the_concatenated_sequence(attention, levels, kv_heads):
    generator = torch.Generator().manual_seed(3)
    batch, n_blocks = shared_batch([1] * len(levels[-1]), levels[-1], runs_of(levels, 1), 1, generator, "cpu")
    q = torch.randn(len(levels[-1]), 8, 16, generator=generator)
    kv = torch.randn(2, n_blocks, 1, kv_heads, 16, generator=generator)
    out, lse = attention(q, kv, batch, 0.3)
    expected_out, expected_lse = dense(q, kv, batch, 0.3)
    torch.testing.assert_close(out.double(), expected_out, atol=5e-6, rtol=0)
    torch.testing.assert_close(lse.double(), expected_lse, atol=5e-6, rtol=1e-6)


@pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS.keys())
@given(data=st.data(), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_any_nesting_equals_dense_attention_among_poison(attention, data, seed):
    """Slots of nobody hold nan. Rows are in no order, and not all of them share."""
    n_rows, kv_heads = data.draw(st.integers(2, 9)), data.draw(st.sampled_from([1, 2]))
    share, block_tokens = data.draw(st.sampled_from([1, 3])), data.draw(st.sampled_from([1, 4, 16]))
    own = data.draw(st.lists(st.integers(1, 40), min_size=n_rows, max_size=n_rows))
    above, runs = [tuple(range(n_rows))], []
    for level in range(data.draw(st.integers(1, 3))):
        here = []
        for rows in above:
            some = data.draw(st.permutations(rows))[: data.draw(st.integers(2, len(rows)))]
            cut = data.draw(st.integers(1, len(some)))
            here += [part for part in (tuple(some[:cut]), tuple(some[cut:])) if len(part) > 1]
        runs += [(data.draw(st.integers(1, 5)), rows, level) for rows in here]
        above = here
    generator = torch.Generator().manual_seed(seed)
    batch, n_blocks = shared_batch([1] * n_rows, own, runs, block_tokens, generator, "cpu")
    kv = torch.full((2, n_blocks, block_tokens, kv_heads, 32), torch.nan)
    kv[:, batch.shared.tables.long()] = 1.0
    kv[:, batch.shared.tables.long()] = torch.randn(
        2, len(batch.shared.tables), block_tokens, kv_heads, 32, generator=generator
    )
    for s, kv_len in enumerate(own):
        for at in range(kv_len):
            block = batch.tables_SB[s, at // block_tokens]
            kv[:, block, at % block_tokens] = torch.randn(2, kv_heads, 32, generator=generator)
    q = torch.randn(n_rows, kv_heads * share, 32, generator=generator)
    out, lse = attention(q, kv, batch, 0.3)
    expected_out, expected_lse = dense(q, kv, batch, 0.3)
    torch.testing.assert_close(out.double(), expected_out, atol=5e-6, rtol=0)
    torch.testing.assert_close(lse.double(), expected_lse, atol=5e-6, rtol=1e-6)


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES.keys())
@pytest.mark.parametrize("peak", [1.0, 1e4])
def test_parts_merged_in_any_order_and_nesting_are_one_softmax(merge, peak):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 60, generator=generator) * peak
    values = torch.randn(60, 8, generator=generator)
    scores[0, :15] = -torch.inf  # a part without a key
    parts = []
    for part in range(4):
        of = slice(15 * part, 15 * part + 15)
        lse = scores[:, of].logsumexp(-1)
        out = torch.nan_to_num(scores[:, of].softmax(-1)) @ values[of]
        parts.append((out.unsqueeze(1), lse.unsqueeze(1)))
    expected = (scores.softmax(-1) @ values).unsqueeze(1), scores.logsumexp(-1).unsqueeze(1)
    for a, b, c, d in itertools.permutations(parts):
        for found in (merge(*merge(*merge(*a, *b), *c), *d), merge(*merge(*a, *b), *merge(*c, *d))):
            torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-6)


def test_packed_runs_are_the_same_with_room_to_spare():
    runs = [PlacedRun(7, 48, (3, 0, 2), 0), PlacedRun(90, 16, (2, 3), 1), PlacedRun(0, 32, tuple(range(4, 70)), 0)]
    exact, roomy = Capacity.of(runs, 70), Capacity.for_any(70, 3)
    tables = torch.zeros(100, dtype=torch.int32)
    found = [capacity.unpack(torch.from_numpy(capacity.pack(runs)), tables, 48, runs) for capacity in (exact, roomy)]
    for name in ("table_starts_R", "keys_R", "member_starts", "members_M", "piece_firsts_P"):
        a, b = (getattr(shared, name) for shared in found)
        assert len(b) > len(a)
        torch.testing.assert_close(b[: len(a)], a)
    exact_pieces, roomy_pieces = (shared.piece_runs_P.tolist() for shared in found)
    assert exact_pieces == [0, 1, 2, 2, 2]
    assert roomy_pieces == exact_pieces + [-1] * (len(roomy_pieces) - 5)
    assert found[1].member_starts.tolist()[4:] == [71] * (len(found[1].member_starts) - 4)  # no member behind the last
    places = found[1].places_LT
    assert [int(found[1].members_M[place]) for place in places[0] if place >= 0] == [0, *range(2, 70)]
    assert [k for k, place in enumerate(places[1]) if place >= 0] == [2, 3]
    assert (places[2] == -1).all()
    assert found[0].runs_host == found[1].runs_host


@pytest.mark.parametrize("tokens", [2, 3, 4, 9, 64])
def test_there_is_room_for_any_runs_that_rows_can_have(tokens):
    """A chain is the deepest nesting; pairs are the most runs of a level."""
    levels = 4
    capacity = Capacity.for_any(tokens, levels)
    chain = [PlacedRun(0, 16, tuple(range(level, tokens)), level) for level in range(min(levels, tokens - 1))]
    pairs = [PlacedRun(0, 16, (k, k + 1), 0) for k in range(0, tokens - 1, 2)]
    for runs in (chain, pairs):
        packed = capacity.pack(runs)
        unpacked = capacity.unpack(torch.from_numpy(packed), torch.zeros(1, dtype=torch.int32), 16, runs)
        n_pieces = int((unpacked.piece_runs_P >= 0).sum())
        assert n_pieces == Capacity.of(runs, tokens).pieces
        assert np.array_equal(packed, capacity.pack(runs))


def test_a_batch_without_runs_is_not_for_this_op():
    batch, n_blocks = shared_batch([1, 1], [3, 4], [(1, (0, 1), 0)], 16, torch.Generator(), "cpu")
    with pytest.raises(AssertionError):
        shared_attention(torch.zeros(2, 2, 8), torch.zeros(2, n_blocks, 16, 2, 8), replace(batch, shared=None), 1.0)


@pytest.mark.skipif(not native.cpu_flags().issuperset(native.AVX512.needed), reason="this CPU runs no C++ kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_in_cpp_every_row_gets_the_bits_of_reading_alone(shape, dtype, threads):
    generator = torch.Generator().manual_seed(1)
    batch, n_blocks = shared_batch(*SHAPES[shape], 16, generator, "cpu")
    whole, kv_lens = [], []
    for s, own in enumerate(batch.kv_lens_host):
        blocks = []
        for run in sorted(batch.shared.runs_host, key=lambda run: run.level):
            if batch.q_starts_host[s] in batch.shared.members_M[run.first : run.stop]:
                blocks += batch.shared.tables[run.table_start : run.table_start + run.keys // 16].tolist()
        kv_lens.append(16 * len(blocks) + own)
        whole.append(blocks + batch.tables_SB[s, : -(-own // 16)].tolist())
    tables = torch.tensor([row + [0] * (max(map(len, whole)) - len(row)) for row in whole], dtype=torch.int32)
    alone = replace(batch, tables_SB=tables, kv_lens_host=tuple(kv_lens), shared=None)
    torch.set_num_threads(threads)
    try:
        for heads, kv_heads, head_dim in ((4, 2, 64), (3, 1, 128), (5, 5, 32), (16, 2, 256)):
            q = torch.randn(batch.q_starts_host[-1], heads, head_dim, generator=generator).to(dtype)
            kv = torch.randn(2, n_blocks, 16, kv_heads, head_dim, generator=generator).to(dtype)
            for soft_cap in (None, 2.0):
                found = ATTENTIONS["native"](q, kv, batch, 0.2, soft_cap)
                expected = paged_attention.implementations["native"](q, kv, alone, 0.2, None, soft_cap)
                torch.testing.assert_close(found, expected, atol=0, rtol=0)
    finally:
        torch.set_num_threads(1)
