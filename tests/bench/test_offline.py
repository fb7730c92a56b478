"""`penstock bench offline`: what a workload is, what a machine must do for it, and the command as people run it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from penstock.bench.bounds import MachineLimits, bound_of
from penstock.bench.shapes import SHAPES, folder_of
from penstock.core.errors import ConfigError, UnknownName
from penstock.models.read_spec import read_model_spec
from penstock.models.weights import weight_bytes
from penstock.options import BUNDLED
from penstock.workload.offline import OFFLINE, OfflineRequest, OfflineWorkload, make_offline

LIMITS = MachineLimits(read_bytes_per_s=1e9, linear_flop_per_s=1e9, float_flop_per_s=1e9)


@pytest.mark.parametrize("name", OFFLINE)
def test_a_workload_has_the_requests_and_lengths_of_its_shape(name):
    shape, workload = OFFLINE[name], make_offline(name)
    assert len(workload.requests) == shape.requests
    for request in workload.requests:
        assert shape.input_tokens[0] <= len(request.prompt) <= shape.input_tokens[1]
        assert shape.output_tokens[0] <= request.output_tokens <= shape.output_tokens[1]
    assert len({request.prompt[: shape.shared_tokens] for request in workload.requests}) == 1
    assert len({request.prompt for request in workload.requests}) == shape.requests


def test_a_workload_is_the_same_every_time_and_another_with_another_seed():
    assert make_offline("mixed256") == make_offline("mixed256")
    assert make_offline("mixed256", seed=1) != make_offline("mixed256")


def test_a_smaller_scale_takes_the_first_requests():
    assert make_offline("mixed256", scale=0.05).requests == make_offline("mixed256").requests[:13]


def test_a_smaller_scale_keeps_the_number_of_decoding_sequences():
    small = make_offline("decode8", scale=0.25)
    assert [request.output_tokens for request in small.requests] == [128] * 8


def test_ids_are_in_the_vocabulary():
    assert max(max(request.prompt) for request in make_offline("mixed256", vocab_size=7).requests) == 6


@pytest.mark.parametrize("scale", [0, -1, 1.5, float("nan")])
def test_a_scale_that_is_no_share_is_refused(scale):
    with pytest.raises(ConfigError, match="scale is"):
        make_offline("mixed256", scale=scale)


def test_an_unknown_workload_is_refused_with_the_names_that_exist():
    with pytest.raises(UnknownName, match="mixed256"):
        make_offline("mixed255")


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_a_model_that_is_served(name):
    with folder_of(name) as folder:
        assert weight_bytes(read_model_spec(folder)) > 10**9


def bound(prompts, outputs, *, shared=0, most_running=64, has_prefix_cache=True, quantize="none"):
    requests = tuple(
        OfflineRequest(prompt=tuple(range(p)), output_tokens=o) for p, o in zip(prompts, outputs, strict=True)
    )
    return bound_of(
        read_model_spec(BUNDLED["penstock-tiny"]),
        OfflineWorkload(name="made", requests=requests, shared_tokens=shared),
        LIMITS,
        dtype="auto",
        quantize=quantize,
        most_running=most_running,
        has_prefix_cache=has_prefix_cache,
    )


def test_a_prompt_costs_its_multiply_adds():
    in_a_layer = 256 * (4 + 2 + 2) * 64 + 4 * 64 * 256 + 3 * 256 * 768
    keys = 10 * 11 // 2
    flops = 10 * 2 * 8 * in_a_layer + 2 * 4096 * 256 + keys * 8 * 4 * 4 * 64
    assert bound([10], [1]).compute_s == pytest.approx(flops / 1e9)


def test_an_answer_reads_the_weights_once_a_token_and_its_keys():
    weights = weight_bytes(read_model_spec(BUNDLED["penstock-tiny"]))
    keys = sum(range(11, 13))  # the second and the third token look back
    assert bound([10], [3]).read_s == pytest.approx((3 * weights + keys * 8 * 2 * 2 * 64 * 2) / 1e9)


def test_answers_share_the_reading_of_weights_as_far_as_they_run_together():
    alone, together = bound([1] * 8, [4] * 8, most_running=1), bound([1] * 8, [4] * 8)
    assert alone.read_s > 7 * together.read_s
    assert alone.compute_s == together.compute_s


def test_a_shared_prefix_is_computed_once_if_there_is_a_cache():
    with_cache, without = bound([100] * 4, [1] * 4, shared=99), bound([100] * 4, [1] * 4, has_prefix_cache=False)
    assert with_cache.compute_s < 0.4 * without.compute_s


def test_integers_are_fewer_bytes():
    assert bound([1], [9], quantize="int8").read_s < 0.6 * bound([1], [9]).read_s


def test_of_experts_a_step_reads_those_that_are_hit():
    with folder_of("qwen3-30b-a3b") as folder:
        spec = read_model_spec(folder)
    limits = {"limits": LIMITS, "dtype": "auto", "quantize": "none", "most_running": 64, "has_prefix_cache": True}

    def read_s(rows):
        requests = (OfflineRequest(prompt=(1,), output_tokens=100),) * rows
        return bound_of(spec, OfflineWorkload(name="made", requests=requests), **limits).read_s

    all_s = 100 * weight_bytes(spec) / 1e9
    assert read_s(1) < 0.12 * all_s  # 3 of 30 billion are active
    assert 0.9 * all_s < read_s(64) < 1.02 * all_s


def penstock(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock.cli", "bench", "offline", "--kv-memory", "64MiB", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_reports_every_token_and_ends_in_json(tmp_path):
    trace = tmp_path / "trace.json"
    done = penstock("--workload", "mixed256", "--scale", "0.02", "--length-scale", "0.05", "--trace", str(trace))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    workload = make_offline("mixed256", scale=0.02, length_scale=0.05, vocab_size=4096)
    assert (report["requests"], report["input_tokens"]) == (5, workload.input_tokens)
    assert report["output_tokens"] == workload.output_tokens
    assert report["share"] == max(report["read_share"], report["compute_share"]) > 0
    assert (report["dtype"], report["quantize"], report["device"]) == ("bfloat16", "none", "cpu")
    assert "output tokens/s" in done.stdout
    events = json.loads(trace.read_text())["traceEvents"]
    ran = [event["args"] for event in events if event["ph"] == "X" and "args" in event]
    assert len(ran) == report["steps"] == report["trace"]["steps"]
    assert sum(step["chunk_tokens"] for step in ran) == workload.input_tokens
    assert {step["ran"] for step in ran} == {"kernel by kernel"}
    assert "the device works" in done.stdout


def test_a_workload_that_the_context_does_not_hold_says_how_to_make_it_fit():
    done = penstock("--workload", "prefill")
    assert done.returncode == 2
    assert "requests of 4097 tokens, penstock-tiny takes 2048" in done.stderr
    assert "--length-scale 0.49" in done.stderr
