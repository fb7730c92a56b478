"""A fit recovers a known cost, says how wrong it is, and knows its files."""

from __future__ import annotations

import random

import pytest

from penstock.core.errors import ConfigError
from penstock.cost.load import StepLoad
from penstock.cost.profile import Curve, Fitted, Sample, fit, read_profile, write_profile


def truth(load: StepLoad) -> float:
    """Reading weights, and from 256 tokens on arithmetic; something more for chunks, for keys and for pairs."""
    base = max(4e-3, 1.5625e-5 * load.tokens) + (1e-3 if load.chunk_tokens else 0.0)
    return base + 2e-8 * load.decode_keys + 3e-8 * load.chunk_keys + 1e-10 * load.chunk_pairs


def decode(rows, context):
    return StepLoad(decode_rows=rows, decode_keys=rows * context, samples=rows)


def chunk(tokens, before, rows=0, context=0):
    return StepLoad(
        decode_rows=rows, decode_keys=rows * context, chunk_tokens=tokens, chunk_keys=before + tokens,
        chunk_pairs=tokens * (before + (tokens + 1) / 2), samples=rows + 1,
    )  # fmt: skip


FITTED = [decode(rows, context) for rows in (1, 4, 16, 64, 256) for context in (64, 1024, 4096)]
FITTED += [chunk(tokens, before) for tokens in (1, 64, 256, 512, 1024, 2048) for before in (0, 1024, 4096)]
CHECKED = [decode(rows, 700) for rows in (3, 12, 100)] + [chunk(300, 500, rows, 300) for rows in (0, 8, 40)]


def fitted(noise_frac=0.0, seed=0):
    rng = random.Random(seed)

    def measured(loads):
        return [Sample(load, truth(load) * (1 + rng.uniform(-noise_frac, noise_frac))) for load in loads]

    return fit(measured(FITTED), measured(CHECKED), model="m", device="d", versions={"torch": "1"}, host_s=1e-4)


@pytest.mark.parametrize(("noise_frac", "error_frac"), [(0.0, 0.03), (0.05, 0.06)])
def test_a_known_cost_is_recovered(noise_frac, error_frac):
    profile = fitted(noise_frac)
    cost = Fitted(profile)
    for load in CHECKED:
        assert cost.step(load).seconds == pytest.approx(truth(load), rel=2 * error_frac)
    assert profile.held_out_frac < error_frac
    assert profile.held_out_frac <= profile.band_frac == cost.step(CHECKED[0]).band_frac
    assert cost.host_s(CHECKED[0]) == 1e-4


def test_beyond_what_was_measured_the_last_slope_goes_on():
    cost = Fitted(fitted())
    assert cost.step(chunk(8192, 0)).seconds == pytest.approx(truth(chunk(8192, 0)), rel=0.15)
    assert Curve((1, 3), (2.0, 4.0)).at(5) == 6.0
    assert Curve((1, 3), (2.0, 4.0)).at(0) == 2.0


def test_nothing_comes_out_negative():
    profile = fitted(0.3, seed=1)
    numbers = (
        *profile.decode.seconds,
        *profile.chunk.seconds,
        profile.decode_key_s,
        profile.chunk_key_s,
        profile.pair_s,
    )
    assert min(numbers) >= 0


def test_the_key_changes_with_anything_that_went_in():
    assert fitted().key == fitted().key
    assert fitted().key != fitted(1e-6).key


def test_a_profile_reads_back_and_another_file_is_refused(tmp_path):
    path = tmp_path / "p.json"
    write_profile(path, fitted())
    assert read_profile(path) == fitted()
    for content, words in (("{}", "is not a profile"), ("x", "is not a profile")):
        path.write_text(content)
        with pytest.raises(ConfigError, match=words):
            read_profile(path)
    with pytest.raises(ConfigError, match="make one with `penstock profile`"):
        read_profile(tmp_path / "missing.json")


def test_steps_of_one_kind_alone_make_no_profile():
    samples = [Sample(decode(1, 10), 1.0)]
    with pytest.raises(ConfigError, match="steps with prompts"):
        fit(samples, samples, model="m", device="d", versions={}, host_s=0.0)
