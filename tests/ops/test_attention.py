from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.ops.check import make_batch
from penstock.ops.merge_attention import merge_attention
from penstock.ops.paged_attention import paged_attention

from .rows import on_cpu

MERGES = on_cpu(merge_attention)
ATTENTIONS = on_cpu(paged_attention)


def random_qkv(*, tokens, keys, heads, head_dim, dtype):
    generator = torch.Generator().manual_seed(keys)
    shapes = ((tokens, heads, head_dim), (keys, heads, head_dim), (keys, heads, head_dim))
    return (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def attend(q, k, v):
    """Every query over every key, in float32; (out, lse)."""
    scores = torch.einsum("thd,lhd->thl", q.float(), k.float()) * q.shape[-1] ** -0.5
    weights = scores.softmax(-1) if k.shape[0] else scores
    return torch.einsum("thl,lhd->thd", weights, v.float()).to(q.dtype), scores.logsumexp(-1)


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES.keys())
@pytest.mark.parametrize("cut", [0, 1, 127, 300])  # 0 and 300: one part sees no key
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_merging_two_parts_equals_attention_over_all_keys(merge, cut, dtype, atol):
    q, k, v = random_qkv(tokens=5, keys=300, heads=3, head_dim=72, dtype=dtype)
    out, lse = merge(*attend(q, k[:cut], v[:cut]), *attend(q, k[cut:], v[cut:]))
    expected_out, expected_lse = attend(q, k, v)
    torch.testing.assert_close(out, expected_out, atol=atol, rtol=0)
    torch.testing.assert_close(lse, expected_lse)


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES.keys())
def test_merging_parts_without_keys_gives_nothing_rather_than_nan(merge):
    empty = torch.full((2, 3, 8), torch.nan), torch.full((2, 3), -torch.inf)
    out, lse = merge(*empty, *empty)
    assert out.count_nonzero() == 0
    assert lse.isneginf().all()


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES.keys())
def test_merging_parts_of_different_shape_is_refused(merge):
    out, lse = torch.zeros(2, 3, 8), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"\(2, 3, 8\), \(2, 3\), \(2, 3, 9\), \(2, 3\)"):
        merge(out, lse, torch.zeros(2, 3, 9), lse)


@st.composite
def segments(draw):
    """(tokens, keys) of each segment, around the multiples of a block; a prefix of the keys may be context."""
    block_tokens = draw(st.sampled_from([1, 4, 16]))
    near_block = st.builds(
        lambda blocks, off: max(1, blocks * block_tokens + off), st.integers(0, 3), st.integers(-1, 1)
    )
    kv_lens = draw(st.lists(near_block, min_size=1, max_size=6))
    q_lens = [draw(st.one_of(st.just(1), st.integers(1, kv_len))) for kv_len in kv_lens]
    return q_lens, kv_lens, block_tokens


@pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS.keys())
@given(
    shape=segments(),
    kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3]),
    window=st.one_of(st.none(), st.integers(1, 50)),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_paged_attention_equals_torch_on_each_sequence_alone(attention, shape, kv_heads, group, window, seed):
    q_lens, kv_lens, block_tokens = shape
    generator = torch.Generator().manual_seed(seed)
    batch, n_blocks = make_batch(q_lens, kv_lens, block_tokens, generator=generator)
    q = torch.randn(sum(q_lens), kv_heads * group, 16, generator=generator)
    kv = torch.full((2, n_blocks, block_tokens, kv_heads, 16), torch.nan)  # slots of nobody are poison
    out_rows, lse_rows = [], []
    for s, (q_len, kv_len) in enumerate(zip(q_lens, kv_lens, strict=True)):
        keys = torch.randn(2, kv_len, kv_heads, 16, generator=generator)
        for at in range(kv_len):
            kv[:, batch.tables_SB[s, at // block_tokens], at % block_tokens] = keys[:, at]
        q_s = q[batch.q_starts_host[s] : batch.q_starts_host[s + 1]]
        mask = torch.ones(q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)
        if window is not None:
            mask = mask.triu(kv_len - q_len - window + 1)
        k_s, v_s = keys.repeat_interleave(group, dim=2).transpose(1, 2)
        expected = F.scaled_dot_product_attention(q_s.transpose(0, 1), k_s, v_s, attn_mask=mask, scale=0.3)
        out_rows.append(expected.transpose(0, 1))
        scores = (q_s.transpose(0, 1) @ k_s.transpose(1, 2) * 0.3).masked_fill(~mask, -torch.inf)
        lse_rows.append(scores.logsumexp(-1).T)
    out, lse = attention(q, kv, batch, 0.3, window)
    torch.testing.assert_close(out, torch.cat(out_rows), atol=3e-6, rtol=0)
    torch.testing.assert_close(lse, torch.cat(lse_rows), atol=3e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block_tokens", [1, 4, 16, 48])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(2, 2, 32), (8, 1, 96), (5, 1, 128), (6, 2, 256), (2, 1, 80)]
)
def test_one_token_reads_its_own_keys_among_poison(heads, kv_heads, head_dim, block_tokens, dtype):
    """Sizes that C++ serves, and one that it does not; lengths around its tiles of 64 keys and vectors of 16."""
    kv_lens = [1, 15, 17, 63, 64, 65, 130]
    generator = torch.Generator().manual_seed(0)
    batch, n_blocks = make_batch([1] * len(kv_lens), kv_lens, block_tokens, generator=generator, spare_blocks=3)
    kv = torch.full((2, n_blocks, block_tokens, kv_heads, head_dim), torch.nan, dtype=dtype)
    for s, kv_len in enumerate(kv_lens):
        for at in range(kv_len):
            block = batch.tables_SB[s, at // block_tokens]
            kv[:, block, at % block_tokens] = torch.randn(2, kv_heads, head_dim, generator=generator).to(dtype)
    q = torch.randn(len(kv_lens), heads, head_dim, generator=generator).to(dtype)
    found = ATTENTIONS["native"](q, kv, batch, 0.2)
    expected = ATTENTIONS["reference"](q, kv, batch, 0.2)
    atol = 1e-5 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(found, expected, atol=atol, rtol=atol)


@pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS.keys())
@pytest.mark.parametrize("n_tokens", [1, 5, 200])
@pytest.mark.parametrize("window", [None, 3, 100])
def test_a_soft_cap_bends_the_scores_before_anything_is_hidden(attention, n_tokens, window):
    generator = torch.Generator().manual_seed(n_tokens)
    batch, n_blocks = make_batch([n_tokens], [200], 16, generator=generator)
    q, kv = torch.randn(n_tokens, 2, 8, generator=generator), torch.randn(2, n_blocks, 16, 2, 8, generator=generator)
    k, v = kv[:, batch.tables_SB[0]].flatten(1, 2)[:, :200].transpose(1, 2)
    mask = torch.ones(n_tokens, 200, dtype=torch.bool).tril(200 - n_tokens)
    if window is not None:
        mask = mask.triu(200 - n_tokens - window + 1)
    scores = (1.5 * torch.tanh(q.transpose(0, 1) @ k.transpose(1, 2) * 2 / 1.5)).masked_fill(~mask, -torch.inf)
    out, lse = attention(q, kv, batch, 2.0, window, 1.5)
    torch.testing.assert_close(out, (scores.softmax(-1) @ v).transpose(0, 1), atol=3e-6, rtol=0)
    torch.testing.assert_close(lse, scores.logsumexp(-1).T, atol=3e-6, rtol=1e-6)


def test_a_window_reads_no_block_outside_of_it_on_the_cpu():
    attention = ATTENTIONS["cpu"]
    generator = torch.Generator().manual_seed(0)
    batch, n_blocks = make_batch([1, 3], [100, 90], 16, generator=generator)
    q, kv = torch.randn(4, 2, 8, generator=generator), torch.randn(2, n_blocks, 16, 2, 8, generator=generator)
    expected, _ = attention(q, kv, batch, 0.3, 20)
    batch.tables_SB[0, :5] = batch.tables_SB[1, :4] = 10**6
    torch.testing.assert_close(attention(q, kv, batch, 0.3, 20)[0], expected, atol=0, rtol=0)


@pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS.keys())
def test_rows_that_pad_a_batch_get_nothing_and_change_nothing(attention):
    generator = torch.Generator().manual_seed(0)
    batch, n_blocks = make_batch([1, 1], [20, 0], 16, generator=generator)
    alone = dataclasses.replace(batch, q_starts_host=(0, 1), kv_lens_host=(20,))
    q, kv = torch.randn(2, 4, 16, generator=generator), torch.randn(2, n_blocks, 16, 2, 16, generator=generator)
    out, lse = attention(q, kv, batch, 0.25)
    torch.testing.assert_close(out[:1], attention(q[:1], kv, alone, 0.25)[0])
    assert out[1].count_nonzero() == 0
    assert lse[1].isneginf().all()


@pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS.keys())
def test_a_pool_of_another_dtype_is_read_as_that_of_the_queries(attention):
    generator = torch.Generator().manual_seed(0)
    batch, n_blocks = make_batch([1, 5], [20, 30], 16, generator=generator)
    q, kv = torch.randn(6, 4, 16, generator=generator), torch.randn(2, n_blocks, 16, 2, 16, generator=generator).half()
    torch.testing.assert_close(attention(q, kv, batch, 0.25)[0], attention(q, kv.float(), batch, 0.25)[0])


@pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS.keys())
def test_heads_that_cannot_be_shared_equally_are_refused(attention):
    batch, n_blocks = make_batch([1], [3], 16, generator=torch.Generator())
    with pytest.raises(ValueError, match="3 query heads cannot share 2 KV heads"):
        attention(torch.zeros(1, 3, 8), torch.zeros(2, n_blocks, 16, 2, 8), batch, 1.0)


def test_a_batch_of_many_lengths_is_grouped_so_that_little_is_padded():
    from penstock.ops.paged_attention.cpu import _lay_out

    kv_lens = (2000, *([50] * 40), 900, 1100)
    layout = _lay_out(tuple(range(len(kv_lens) + 1)), kv_lens, 16, 4096)
    assert sorted(row for group in layout.groups for row in group.rows_R.tolist()) == list(range(len(kv_lens)))
    assert all(len(group.rows_R) * group.entries_RB.shape[1] * 16 <= 4096 for group in layout.groups)
    assert sum(len(group.rows_R) * group.entries_RB.shape[1] * 16 for group in layout.groups) <= 2 * (
        sum(kv_lens) + 16 * 43
    )
    assert len(layout.groups) <= 5
