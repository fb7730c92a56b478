"""The references that are small enough to be checked against one line of torch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from penstock.ops.add_sink import add_sink
from penstock.ops.clamped_swiglu import clamped_swiglu
from penstock.ops.experts import experts
from penstock.ops.gated_gelu import gated_gelu
from penstock.ops.gated_silu import gated_silu
from penstock.ops.rms_norm import rms_norm
from penstock.ops.rope import rope
from penstock.ops.route import route
from penstock.ops.write_kv import write_kv

from .rows import on_cpu


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_rms_norm_is_that_of_torch():
    x, weight = torch.randn(5, 48), torch.randn(48)
    normed, total = rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(normed, F.rms_norm(x, (48,), weight, 1e-5))
    assert total is x


def test_rms_norm_adds_the_residual_first_and_returns_the_sum():
    x, residual, weight = torch.randn(5, 48), torch.randn(5, 48), torch.randn(48)
    normed, total = rms_norm(x, weight, 1e-5, residual)
    torch.testing.assert_close(total, x + residual, atol=0, rtol=0)
    torch.testing.assert_close(normed, rms_norm(x + residual, weight, 1e-5)[0], atol=0, rtol=0)


def test_rms_norm_of_large_half_precision_does_not_overflow():
    normed, _ = rms_norm(torch.full((1, 64), 6e4, dtype=torch.float16), torch.ones(64, dtype=torch.float16), 1e-6)
    torch.testing.assert_close(normed, torch.ones_like(normed))


@pytest.mark.parametrize("rotate", on_cpu(rope).values(), ids=on_cpu(rope).keys())
def test_rope_makes_scores_depend_on_the_distance_only(rotate):
    q, k = torch.randn(1, 1, 64).double().float(), torch.randn(1, 1, 64)
    frequencies = 1.0 / 100 ** (torch.arange(32) / 32)

    def score(q_at: int, k_at: int) -> torch.Tensor:
        def turn(x, at):
            angles = at * frequencies.unsqueeze(0)
            return rotate(x, angles.cos(), angles.sin())

        return (turn(q, q_at) * turn(k, k_at)).sum()

    torch.testing.assert_close(score(7, 3), score(104, 100), atol=1e-4, rtol=0)
    assert (score(7, 3) - score(8, 3)).abs() > 1e-3


@pytest.mark.parametrize("rotate", on_cpu(rope).values(), ids=on_cpu(rope).keys())
def test_rope_leaves_features_beyond_the_rotated_ones(rotate):
    x, angles = torch.randn(3, 2, 10), torch.randn(3, 2)
    out = rotate(x, angles.cos(), angles.sin())
    torch.testing.assert_close(out[..., 4:], x[..., 4:], atol=0, rtol=0)
    turned = torch.complex(x[..., :2], x[..., 2:4]) * torch.polar(torch.ones(3, 1, 2), angles.unsqueeze(1))
    torch.testing.assert_close(out[..., :4], torch.cat((turned.real, turned.imag), dim=-1))
    with pytest.raises(ValueError, match="12 features, a head has 10"):
        rotate(x, torch.ones(3, 6), torch.zeros(3, 6))


def test_gated_silu_gates_with_the_first_half():
    gate, up = torch.randn(4, 6), torch.randn(4, 6)
    torch.testing.assert_close(gated_silu(torch.cat((gate, up), dim=1)), gate * torch.sigmoid(gate) * up)


def test_gated_gelu_gates_with_the_first_half():
    gate, up = torch.randn(4, 6), torch.randn(4, 6)
    expected = F.gelu(gate, approximate="tanh") * up
    torch.testing.assert_close(gated_gelu(torch.cat((gate, up), dim=1)), expected)


def test_clamped_swiglu_bounds_both_halves():
    gate_up = torch.tensor([[100.0, 100.0, -100.0, -100.0, 1.0, 0.5]])  # gate, up, gate, up, ...
    out = clamped_swiglu(gate_up)
    torch.testing.assert_close(out, torch.tensor([[8 * 7.0, 0.0, 1.5 / (1 + math.exp(-1.702))]]), atol=1e-3, rtol=0)


def test_a_sink_is_one_more_key_of_value_zero():
    scores, values, sinks = torch.randn(3, 2, 5), torch.randn(5, 8), torch.randn(2)
    with_sink = torch.cat((scores, sinks.expand(3, 2).unsqueeze(-1)), dim=-1)
    out, lse = add_sink(scores.softmax(-1) @ values, scores.logsumexp(-1), sinks)
    torch.testing.assert_close(out, with_sink.softmax(-1)[..., :-1] @ values)
    torch.testing.assert_close(lse, with_sink.logsumexp(-1))


def test_write_kv_writes_its_slots_and_nothing_else():
    kv = torch.zeros(2, 3, 4, 2, 8)
    k, v = torch.randn(2, 2, 8), torch.randn(2, 2, 8)
    write_kv(k, v, kv, torch.tensor([9, 2]))
    torch.testing.assert_close(kv[0, 2, 1], k[0])
    torch.testing.assert_close(kv[1, 0, 2], v[1])
    assert kv.count_nonzero() == 2 * k.numel()


def test_route_takes_the_likeliest_experts():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    weights, chosen = route(logits, 2, False)
    assert chosen.tolist() == [[1, 3]]
    torch.testing.assert_close(weights, logits.softmax(-1)[:, [1, 3]])
    torch.testing.assert_close(route(logits, 2, True)[0], logits[:, [1, 3]].softmax(-1))


def test_route_by_groups_takes_experts_of_the_best_groups_only():
    logits = torch.tensor([[5.0, 0.0, 3.0, 2.9, 4.0, -9.0]])  # groups of two; the best are the first and the last
    weights, chosen = route(logits, 3, False, 2.0, 3, 2)
    assert chosen.tolist() == [[0, 4, 1]]
    torch.testing.assert_close(weights, 2 * logits.softmax(-1)[:, [0, 4, 1]])


def test_route_of_half_precision_weighs_in_float32():
    logits = torch.tensor([[3.0, 3.0156, 2.9844, -1.0, 0.5]]).bfloat16()
    weights, chosen = route(logits, 3, True)
    exact = logits.float().softmax(-1).gather(1, chosen)
    torch.testing.assert_close(weights, (exact / exact.sum(-1, keepdim=True)).bfloat16(), atol=0, rtol=0)


@pytest.mark.parametrize("run", on_cpu(experts).values(), ids=on_cpu(experts).keys())
def test_experts_equal_every_expert_on_every_token(run):
    x, gate_up, down = torch.randn(11, 16), torch.randn(5, 24, 16), torch.randn(5, 16, 12)
    weights, chosen = route(torch.randn(11, 5), 2, True)
    everything = torch.stack([gated_silu(x @ gate_up[e].T) @ down[e].T for e in range(5)], dim=1)
    expected = (everything.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 16)) * weights.unsqueeze(-1)).sum(1)
    torch.testing.assert_close(run(x, gate_up, down, weights, chosen), expected, atol=1e-4, rtol=1e-4)
