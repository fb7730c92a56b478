"""What /metrics and the health routes show."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from penstock.api.metrics import HISTOGRAMS, Histogram


def samples(server) -> dict[str, list]:
    response = server.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    found: dict[str, list] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def value(found: dict[str, list], name: str, **labels: str) -> float:
    (sample,) = [s for s in found[name] if labels.items() <= s.labels.items()]
    return sample.value


def test_the_engines_counters_appear_under_their_names(server):
    found = samples(server)
    assert value(found, "penstock_requests_running") == 0
    assert value(found, "penstock_kv_used_frac") == 0.25
    assert value(found, "penstock_preemptions_total") == 3


def test_what_computes_each_op_is_shown(server):
    found = samples(server)
    assert value(found, "penstock_kernel_info", op="rms_norm", kernel="native") == 1
    assert value(found, "penstock_kernel_info", op="experts", kernel="cpu") == 1


def test_requests_are_counted_and_timed(start):
    server = start()
    server.post("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 4, "n": 2})
    server.post("/v1/completions", {"prompt": ""})
    found = samples(server)
    assert value(found, "penstock_responses_total", route="/v1/completions", status="200") == 1
    assert value(found, "penstock_responses_total", route="/v1/completions", status="400") == 1
    assert value(found, "penstock_refusals_total", code="invalid_request") == 1
    assert value(found, "penstock_samples_ended_total", reason="length") == 2
    assert value(found, "penstock_prompt_tokens_total") == 6
    assert value(found, "penstock_generation_tokens_total") == 8
    assert value(found, "penstock_ttft_seconds_count") == 2
    assert value(found, "penstock_ttft_seconds_sum") == pytest.approx(0.06)
    assert value(found, "penstock_ttft_seconds_bucket", le="0.04") == 2
    assert value(found, "penstock_ttft_seconds_bucket", le="0.02") == 0
    assert value(found, "penstock_itl_seconds_count") == 6
    assert value(found, "penstock_asked_samples_sum") == 2
    assert not any(name.startswith("vllm:") for name in found)


def test_the_switch_adds_the_names_of_vllm(server):
    server.post("/v1/completions", {"prompt": "x"})
    found = samples(server)
    labels = {"model_name": "tiny", "engine": "0"}
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "gpu_cache_usage_perc"):
        assert labels.items() <= found[f"vllm:{name}"][0].labels.items()
    for name in ("prompt_tokens", "generation_tokens", "num_preemptions", "prompt_tokens_cached"):
        assert f"vllm:{name}_total" in found
    assert value(found, "vllm:admission_rejections_total", reason="max_num_queued_reqs") == 2
    assert value(found, "vllm:request_success_total", finished_reason="length") >= 1
    assert value(found, "vllm:cache_config_info", block_size="16", num_gpu_blocks="64") == 1
    for row in HISTOGRAMS:
        for name in row.vllm:
            assert value(found, f"vllm:{name}_bucket", le="+Inf") == value(found, f"penstock_{row.name}_count")
    assert "vllm:spec_decode_num_drafts_total" not in found  # not measured, so not shown


def test_no_two_families_share_a_name(server):
    server.post("/v1/completions", {"prompt": "x"})
    text = server.http.get("/metrics").text
    names = [family.name.removesuffix("_total") for family in text_string_to_metric_families(text)]
    assert len(names) == len(set(names))


def test_a_histogram_counts_a_value_on_a_bound_below_it():
    histogram = Histogram((1.0, 2.0))
    for number in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(number)
    assert histogram.buckets() == [("1.0", 2), ("2.0", 4), ("+Inf", 5)]
    assert histogram.total == 14


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_health_follows_the_engine(server, path):
    assert server.http.get(path).status_code == 200
    server.engine.is_ready = False
    response = server.http.get(path)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "not_ready"
    assert server.http.get("/live").status_code == 200


def test_version_and_load(server):
    import penstock

    assert server.http.get("/version").json() == {"version": penstock.__version__}
    assert server.http.get("/load").json() == {"server_load": 0, "requests_running": 0, "requests_waiting": 0}
