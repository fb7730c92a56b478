"""Ranks that hold a share each are the whole model: every family, every kind of cut."""

from __future__ import annotations

import json

import pytest
import torch

from penstock.core.errors import ConfigError
from penstock.models.families.family import WeightNames
from penstock.models.parameters import parameters_of
from penstock.models.read_spec import read_model_spec
from penstock.models.sharding import rank_parameters, spec_of_rank
from penstock.models.spec import Shard
from penstock.models.weights import load_model, weight_bytes
from tests.models.checkpoints import MAKERS, expected_logits
from tests.models.paged_run import PagedRun
from tests.models.ranks import on_ranks
from tests.models.test_decoder import random_ids

ATOL = 1e-4


def logits_of_ranks(folder, size, ids, **options):
    """Of every token, from every rank: a prompt in two chunks."""

    def work(peers):
        run = PagedRun(load_model(folder, peers=peers, **options), [ids], 4)
        return torch.cat([run.step({0: 5})[0], run.step({0: len(ids) - 5})[0]])

    return on_ranks(size, work)


@pytest.mark.parametrize("name", MAKERS)
def test_two_ranks_give_the_logits_of_transformers(name, checkpoint):
    model, folder = checkpoint(name)
    ids = random_ids(40)
    first, second = logits_of_ranks(folder, 2, ids)
    torch.testing.assert_close(first, expected_logits(model, ids), atol=ATOL, rtol=0)
    assert torch.equal(first, second), "every rank draws from the same bits"


@pytest.mark.parametrize("name", ["gemma", "llama3-gqa", "olmo2-gqa", "deepseek-v2", "gpt-oss"])
def test_four_ranks_share_kv_heads_and_give_the_same(name, checkpoint):
    model, folder = checkpoint(name)
    ids = random_ids(20)
    found = logits_of_ranks(folder, 4, ids)
    torch.testing.assert_close(found[0], expected_logits(model, ids), atol=ATOL, rtol=0)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_hold_each_weight_once_but_for_what_all_of_them_need(name, size, checkpoint):
    """Sums over the ranks: what is cut is there once; norms, routers, latents and shared KV heads on every rank."""
    spec = read_model_spec(checkpoint(name)[1])
    whole = {p.name: p.elements for p in parameters_of(spec, WeightNames())}
    ranks = [{p.name: p.elements for p in rank_parameters(spec, WeightNames(), Shard(r, size))} for r in range(size)]
    for parameter, elements in whole.items():
        held = sum(rank[parameter] for rank in ranks)
        ends = parameter.rsplit(".", 1)[-1]
        shares_kv = ends in ("qkv", "qkv_bias", "qk_norm", "k_norm") and spec.layers[0].attention.kv_heads < size
        if ends in ("embed", "head", "gate_up", "gate_up_bias", "down", "out", "q", "kv_b", "q_norm", "sinks", "qkv",
                    "qkv_bias", "qk_norm", "k_norm") and not shares_kv:  # fmt: skip
            assert held == elements, parameter
        elif shares_kv:
            assert elements < held < size * elements, parameter
        else:
            assert held == size * elements, parameter


@pytest.mark.parametrize("name", ["llama-mha", "qwen2-moe", "deepseek-v2"])
def test_the_memory_of_a_rank_is_known_before_it_is_taken(name, checkpoint):
    folder = checkpoint(name)[1]
    spec = read_model_spec(folder)
    for peers in on_ranks(2, lambda peers: peers):
        held = sum(tensor.nbytes for tensor in load_model(folder, peers=peers).tensors.values())
        assert held == weight_bytes(spec, shard=peers.shard)
        assert held < 0.7 * weight_bytes(spec)


@pytest.mark.parametrize("name", ["llama3-gqa", "gpt-oss", "qwen3-moe"])
def test_dummy_weights_of_all_ranks_are_those_of_one(name, checkpoint):
    folder, ids = checkpoint(name)[1], random_ids(9)
    expected = PagedRun(load_model(folder, load_format="dummy"), [ids], 4).step({0: 9})[0]
    found = logits_of_ranks(folder, 2, ids, load_format="dummy")[0]
    torch.testing.assert_close(found, expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("quantize", ["fp8", "int8", "int4"])
def test_ranks_round_their_own_weights(quantize, checkpoint):
    """Scales are by output and input group of a rank, so results differ from those of one rank as roundings do."""
    folder, ids = checkpoint("qwen3")[1], random_ids(30)
    exact = PagedRun(load_model(folder), [ids], 4).step({0: 30})[0]
    one = PagedRun(load_model(folder, quantize=quantize), [ids], 4).step({0: 30})[0]
    two = logits_of_ranks(folder, 2, ids, quantize=quantize)[0]
    assert (two - exact).abs().mean() < 1.3 * (one - exact).abs().mean()


def test_a_vocabulary_that_does_not_divide_is_filled_up(checkpoint, tmp_path):
    folder = checkpoint("llama-mha")[1]
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 61}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ids = [60, 59, 30, 31, 29, 0, 7]
    expected = PagedRun(load_model(tmp_path, load_format="dummy"), [ids], 4).step({0: 7})[0]
    for found in logits_of_ranks(tmp_path, 4, ids, load_format="dummy"):
        assert found.shape == (7, 61)
        torch.testing.assert_close(found, expected, atol=ATOL, rtol=0)


def test_what_does_not_divide_is_said_in_one_line(checkpoint):
    spec = read_model_spec(checkpoint("mixtral")[1])
    with pytest.raises(ConfigError, match="--tensor-parallel 3 does not divide") as refused:
        spec_of_rank(spec, Shard(0, 3))
    assert "it has 4 attention heads" in str(refused.value)
    assert "it has 2 KV heads" in str(refused.value)
    assert "experts" not in str(refused.value)
    assert "features of an expert" in str(refused.value)
    assert "\n" not in str(refused.value)
