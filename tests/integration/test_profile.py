"""`penstock profile` on the bundled model, and a simulation with what it wrote."""

from __future__ import annotations

from penstock.cost.profile import read_profile
from penstock.profile import grid


def test_points_that_check_the_fit_are_none_that_it_saw():
    fitted, checked = grid(64, 2048, 2048)
    assert checked
    assert not set(fitted) & set(checked)
    assert all(point.rows <= 64 and point.before + point.chunk < 2048 for point in (*fitted, *checked))


def test_a_small_profile_is_measured_written_and_simulated_with(run_cli, tmp_path):
    code, out, err = run_cli(
        "profile", "--max-running", "4", "--largest-chunk", "64", "--threads", "1", "--out", "p.json"
    )
    assert code == 0, err
    assert "steps fitted; on others the error is" in out.replace("\n", " ")
    profile = read_profile(tmp_path / "p.json")
    assert profile.model == "penstock-tiny"
    assert 0 < profile.decode.at(1) < 1
    assert profile.decode.at(4) < 4 * profile.decode.at(1)
    assert 0 < profile.host_s < 0.1
    code, out, err = run_cli("simulate", "--model", "penstock-tiny", "--profile", "p.json", "--limit", "20")
    assert code == 0, err
    assert "step times were measured on" in out
    code, _, err = run_cli("simulate", "--model", "llama-8b", "--profile", "p.json", "--limit", "20")
    assert code == 2
    assert "was measured on penstock-tiny, not on llama-8b" in err
