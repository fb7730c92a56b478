"""A fit recovers a known cost, says how wrong it is and where it knows nothing, and knows its files."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from penstock.core.errors import ConfigError
from penstock.core.plan import Toward
from penstock.cost.fit import fit
from penstock.cost.load import StepLoad
from penstock.cost.profile import Curve, Fitted, HostTimes, Profile, Sample, bucket_of, read_profile, write_profile

HOST = HostTimes(step_s=1e-4, row_s=1e-6, start_s=2e-4, token_s=1e-7)


def truth(load: StepLoad) -> float:
    """Reading weights, and from 256 tokens on arithmetic; something more for chunks, for keys and for pairs."""
    base = max(4e-3, 1.5625e-5 * load.tokens) + (1e-3 if load.chunk_tokens else 0.0)
    base += 2e-5 * load.decode_rows if load.chunk_tokens else 0.0
    return base + 2e-8 * load.decode_keys + 3e-8 * load.chunk_keys + 1e-10 * load.chunk_pairs


def decode(rows, context):
    return StepLoad(decode_rows=rows, decode_keys=rows * context, samples=rows)


def chunk(tokens, before, rows=0, context=0):
    return StepLoad(
        decode_rows=rows, decode_keys=rows * context, chunk_tokens=tokens, chunk_keys=before + tokens,
        chunk_pairs=tokens * (before + (tokens + 1) / 2), samples=rows + 1, starts=1,
    )  # fmt: skip


MEASURED = [decode(rows, context) for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256) for context in (64, 512, 4096)]
MEASURED += [chunk(tokens, before) for tokens in (1, 16, 64, 256, 512, 1024, 2048) for before in (0, 512, 4096)]
MEASURED += [chunk(tokens, 0, rows, 512) for tokens in (64, 256, 1024) for rows in (1, 16, 64)]
UNSEEN = [decode(rows, 700) for rows in (3, 12, 100, 200)] + [chunk(300, 500, rows, 300) for rows in (0, 8, 40)]


def fitted(noise_frac=0.0, seed=0, cost=truth, **more) -> Profile:
    rng = random.Random(seed)
    samples = [Sample(load, cost(load) * (1 + rng.uniform(-noise_frac, noise_frac))) for load in MEASURED]
    options = {"model": "m", "device": "d", "hardware": "a d", "versions": {"torch": "1"}, "host": HOST}
    return fit(samples, **{**options, **more})


def model_of(profile: Profile) -> Fitted:
    return Fitted(profile, host_bytes_per_s=1e9)


@pytest.mark.parametrize(("noise_frac", "error_frac"), [(0.0, 0.03), (0.05, 0.06)])
def test_a_known_cost_is_recovered_on_sizes_that_were_not_measured(noise_frac, error_frac):
    cost = model_of(fitted(noise_frac))
    errors = [abs(cost.step(load).seconds / truth(load) - 1) for load in UNSEEN]
    assert sum(errors) / len(errors) <= error_frac
    assert not any(cost.step(load).is_extrapolated for load in UNSEEN)


def test_the_error_that_it_states_is_that_of_ranges_it_did_not_see():
    profile = fitted()
    assert profile.decode.held_out_frac <= 0.03
    assert profile.chunk.held_out_frac <= 0.08  # a range with the kink in it is missed
    rough = fitted(0.2)
    assert rough.decode.held_out_frac > profile.decode.held_out_frac
    assert rough.chunk.band_frac >= rough.chunk.held_out_frac


@pytest.mark.parametrize("load", [decode(300, 100), decode(8, 10**6), chunk(8192, 0), chunk(64, 10**5)])
def test_beyond_what_was_measured_it_goes_on_with_a_flag_and_a_wider_band(load):
    profile = fitted(0.02)
    cost = model_of(profile)
    inside, outside = cost.step(chunk(300, 500) if load.chunk_tokens else decode(12, 700)), cost.step(load)
    assert outside.is_extrapolated
    assert not inside.is_extrapolated
    assert outside.band_frac >= 2 * inside.band_frac
    assert outside.seconds == pytest.approx(truth(load), rel=0.25)


def test_nothing_comes_out_negative_and_no_curve_falls():
    profile = fitted(0.3, seed=1)
    for kind in (profile.decode, profile.chunk):
        rates = kind.decode_key_s, kind.chunk_key_s, kind.pair_s, kind.row_s, *kind.curve.seconds
        assert min(rates) >= 0
        assert list(kind.curve.seconds) == sorted(kind.curve.seconds)


def test_a_batch_costs_what_the_bucket_of_its_graph_does():
    buckets = (1, 4, 16, 64, 256)

    def stepped(load: StepLoad) -> float:
        return truth(load) if load.chunk_tokens else 4e-3 + 1e-4 * bucket_of(buckets, load.decode_rows)

    cost = model_of(fitted(cost=stepped, buckets=buckets))
    seconds = [cost.step(decode(rows, 64)).seconds for rows in (5, 6, 15, 16, 17)]
    assert seconds[0] == pytest.approx(stepped(decode(16, 64)), rel=0.02)
    assert seconds[0] == pytest.approx(seconds[3], rel=1e-3)  # but for the keys that are read
    assert seconds[4] == pytest.approx(stepped(decode(64, 64)), rel=0.02)
    assert bucket_of(buckets, 300) == 300
    assert bucket_of((), 5) == 5


def test_steps_of_a_running_engine_correct_whole_steps_by_kind():
    served = [Sample(decode(rows, 300), 1.5 * truth(decode(rows, 300))) for rows in (2, 5, 9)]
    profile = fitted(served=served)
    assert profile.decode.serving_frac == pytest.approx(1.5, rel=0.03)
    assert profile.chunk.serving_frac == 1.0
    assert model_of(profile).step(decode(7, 300)).seconds == pytest.approx(1.5 * truth(decode(7, 300)), rel=0.03)


def test_the_hosts_work_grows_with_rows_with_starts_and_with_prompts():
    cost = model_of(fitted())
    assert cost.host_s(decode(1, 10)) == pytest.approx(1e-4 + 1e-6)
    assert cost.host_s(chunk(100, 0, rows=10)) == pytest.approx(1e-4 + 1e-5 + 2e-4 + 1e-5)


def test_copies_take_what_was_measured_or_what_the_link_is_said_to_do():
    cost = model_of(fitted(out_bytes_per_s=2e9))
    assert cost.move_s(10**9, Toward.HOST) == 0.5
    assert cost.move_s(10**9, Toward.DEVICE) == 1.0


def test_the_key_changes_with_anything_that_went_in():
    base, served = fitted().key, [Sample(decode(3, 300), 1.0)]
    assert fitted().key == base
    changed = [
        fitted(1e-6), fitted(model="n"), fitted(device="e"), fitted(hardware="b"), fitted(versions={"torch": "2"}),
        fitted(host=replace(HOST, row_s=0.0)), fitted(front_s=0.1), fitted(out_bytes_per_s=1.0),
        fitted(in_bytes_per_s=1.0), fitted(buckets=(1, 2)), fitted(served=served),
    ]  # fmt: skip
    assert len({base, *(profile.key for profile in changed)}) == 1 + len(changed)


def test_a_profile_reads_back_and_another_file_is_refused(tmp_path):
    path = tmp_path / "p.json"
    write_profile(path, fitted(buckets=(1, 2, 4)))
    assert read_profile(path) == fitted(buckets=(1, 2, 4))
    for content, words in (
        ("{}", "is not a profile"), ("x", "is not a profile"), ('{"penstock_profile": 1}', "version 1"),
        ('{"penstock_profile": 2}', "is not a profile"),
    ):  # fmt: skip
        path.write_text(content)
        with pytest.raises(ConfigError, match=words):
            read_profile(path)
    with pytest.raises(ConfigError, match="make one with `penstock profile`"):
        read_profile(tmp_path / "missing.json")


def test_steps_of_one_kind_alone_make_no_profile():
    samples = [Sample(decode(rows, 10), 1.0) for rows in (1, 2)]
    with pytest.raises(ConfigError, match="steps with prompts"):
        fit(samples, model="m", device="d", hardware="h", versions={}, host=HOST)


def test_a_curve_goes_on_as_it_ends():
    assert Curve((1, 3), (2.0, 4.0)).at(5) == 6.0
    assert Curve((1, 3), (2.0, 4.0)).at(0) == 2.0
