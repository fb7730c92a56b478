"""`penstock profile` on small models, and simulations with what it wrote."""

from __future__ import annotations

import json

from penstock.core.request import SamplingParams
from penstock.cost.profile import read_profile
from penstock.cost.shipped import shipped_profile, shipped_profiles
from penstock.profiling.bench import Bench
from penstock.profiling.points import Point, grid
from penstock.runtime.build import build_executor
from tests.sim.test_windows import GEMMA2


def test_every_step_of_the_grid_fits_the_model():
    points = grid(64, 2048, 2048)
    assert len(set(points)) == len(points)
    assert all(point.rows <= 64 and point.before + point.chunk < 2048 and point.context < 2048 for point in points)
    assert {point.rows for point in points} >= {1, 64}
    assert max(point.chunk + point.before for point in points) > 1800


def test_a_small_profile_is_measured_written_and_simulated_with(run_cli, tmp_path):
    code, out, err = run_cli(
        "profile", "--max-running", "4", "--largest-chunk", "64", "--threads", "1", "--out", "p.json"
    )
    assert code == 0, err
    assert "sizes that the fit never saw: decode" in out
    profile = read_profile(tmp_path / "p.json")
    assert profile.model == "penstock-tiny"
    assert profile.device == "cpu"
    assert 0 < profile.decode.curve.at(1) < 1
    assert 0 < profile.host.step_s < 0.1
    assert profile.out_bytes_per_s is not None
    assert profile.decode.serving_frac > 0.1
    run = ("simulate", "--limit", "20", "--profile", "p.json", "--no-progress")
    code, out, err = run_cli(*run, "--model", "penstock-tiny")  # on the device of the profile
    assert code == 0, err
    assert "were measured on" in out
    code, _, err = run_cli(*run, "--search", "--slo", "ttft=1", "--device", "h100", "--device", "cpu")
    assert code == 2
    assert "more than one --device with a --profile" in err
    code, _, err = run_cli(*run, "--model", "llama-8b")
    assert code == 2
    assert "was measured on penstock-tiny, not on llama-8b" in err


def test_a_model_with_windows_is_measured_with_the_keys_that_it_reads(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GEMMA2))
    executor = build_executor(tmp_path, load_format="dummy", kv_memory_bytes=2**22, max_rows=4, torch_threads=1)
    try:
        bench = Bench(executor, SamplingParams(temperature=0.0))
        decode = bench.measure(Point(rows=3, context=500))
        chunk = bench.measure(Point(chunk=16, before=700))
    finally:
        executor.close()
    assert decode is not None
    assert chunk is not None
    assert 3 * 500 / 2 < decode.load.decode_keys < 3 * 520 / 2 + 3 * 32 / 2  # half of the layers read 32 keys
    assert chunk.load.chunk_keys == (716 + 16 + 32 - 1) / 2


def test_what_ships_is_found_by_model_and_device_and_used_unasked(run_cli):
    for profile in shipped_profiles():
        assert shipped_profile(profile.model, profile.device) == profile
    assert shipped_profile("penstock-tiny", "cpu") is not None
    assert shipped_profile("penstock-tiny", "b200") is None
    code, out, err = run_cli("profile", "--list")
    assert code == 0, err
    assert "penstock-tiny" in out
    code, out, err = run_cli(
        "simulate", "--model", "penstock-tiny", "--device", "cpu", "--limit", "20", "--no-progress"
    )
    assert code == 0, err
    assert "step times of penstock-tiny were measured on" in " ".join(out.split())
