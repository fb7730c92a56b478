"""`penstock simulate` as a person calls it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from penstock.cli import app

SHORT = ("simulate", "--trace", "steady", "--rate-per-s", "5", "--duration-s", "10", "--no-progress")


def run(*arguments):
    done = CliRunner().invoke(app, [*SHORT, *arguments])
    return done.exit_code, " ".join(done.output.split())


def test_two_policies_are_reported_and_compared_and_written(tmp_path):
    code, output = run("--policy", "default", "--policy", "prefill-first", "--out", str(tmp_path / "run.json"))
    assert code == 0, output
    assert "step times of llama-8b were measured on NVIDIA H200" in output
    assert "compared request by request" in output
    for name in ("default", "prefill-first"):
        assert json.loads((tmp_path / f"run-{name}.json").read_bytes())["header"]["label"] == name


def test_an_option_of_a_policy_changes_what_is_simulated(tmp_path):
    """A prompt that took a step takes many where a step has 32 tokens."""
    ttft_s = {}
    for budget in ("2048", "32"):
        code, output = run("--set", f"batch.budget_tokens={budget}", "--out", str(tmp_path / f"{budget}.json"))
        assert code == 0, output
        records = json.loads((tmp_path / f"{budget}.json").read_bytes())["records"]
        ttft_s[budget] = [record["token_s"][0] - record["sent_s"] for record in records]
    assert sum(ttft_s["32"]) > 2 * sum(ttft_s["2048"])


def test_without_a_profile_that_ships_the_estimate_says_what_it_is():
    code, output = run("--device", "a100")
    assert code == 0, output
    assert "estimates from data sheets, good to about 30%" in output


def test_a_search_names_the_cheapest_fleet():
    code, output = run("--search", "--slo", "ttft=1,tpot=0.05", "--device", "h200", "--device", "a100")
    assert code == 0, output
    assert "cheapest: 1 x a100 with default, US$ 1.80 per hour" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--search"], "--search needs limits to hold"),
        (["--device", "h100", "--device", "h200"], "only --search compares devices"),
        (["--device", "h2000"], "h200"),
        (["--model", "nowhere"], "nowhere is no folder"),
        (["--policy", "wild"], "wild"),
        (["--set", "admit.wild=1"], "option of the admit policy 'watermark' 'wild'"),
        (["--set", "admit"], "has not the form SLOT.OPTION=VALUE"),
        (["--dispatch", "wild"], "round-robin"),
        (["--instances", "2", "--jobs", "2"], "at most 1 can work apart"),
        (["--device", "l4", "--kv-memory", "1KiB"], "hold 0 tokens of llama-8b"),
        (["--trace", "missing.csv"], "missing.csv"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(arguments, words):
    done = CliRunner().invoke(app, [*SHORT[:1], *(SHORT[1:] if "--trace" not in arguments else SHORT[-1:]), *arguments])
    assert done.exit_code == 2, done.output
    assert words in " ".join((done.output + done.stderr).split())


def test_several_processes_write_what_one_does(tmp_path):
    fleet = ("--instances", "3", "--dispatch", "round-robin")
    for n_jobs in ("1", "2"):
        code, output = run(*fleet, "--jobs", n_jobs, "--out", str(tmp_path / f"{n_jobs}.json"))
        assert code == 0, output
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
