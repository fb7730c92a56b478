"""The generator reproduces the statistics that its sources name. Seeds are fixed: the samples never change."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_strategies import calm

from penstock.core.errors import UnknownName
from penstock.workload.arrivals import (
    DAY_S,
    HOUR_S,
    WEEK_S,
    Profile,
    Regime,
    draw_arrivals,
    draw_segments,
    steady,
    time_shares,
)
from penstock.workload.burstgpt import GeneratorSpec, SessionLaw, block_hashes, generate
from penstock.workload.kinds import Traffic
from penstock.workload.lengths import LengthModel, QuantileTable
from penstock.workload.presets import (
    CHATGPT,
    CHATGPT_OUTPUT_BY_INPUT,
    DAILY,
    GPT4,
    TAIL_FRAC,
    WEEKLY,
    at_rate,
    burst_regimes,
    preset,
)
from penstock.workload.trace import TraceError, write_trace


def arrivals(
    seed: int, regimes: tuple[Regime, ...], rate_per_s: float, duration_s: float, **profile: object
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return draw_arrivals(rng, draw_segments(rng, regimes, rate_per_s, duration_s, Profile(**profile)))  # type: ignore[arg-type]


# -- arrivals


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0, 2.0])
def test_gaps_have_the_mean_and_the_cv_that_were_asked_for(alpha):
    gaps_s = np.diff(arrivals(0, steady(alpha), 2.0, 100_000.0))
    assert gaps_s.mean() == pytest.approx(0.5, rel=0.01)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(alpha**-0.5, rel=0.02)


@pytest.mark.parametrize("alpha", [0.25, 1.0, 4.0])
def test_even_a_short_trace_has_the_right_rate_in_expectation(alpha):
    counts = np.array([arrivals(seed, steady(alpha), 1.0, 5.0).size for seed in range(3000)])
    assert abs(counts.mean() - 5.0) < 4 * counts.std() / np.sqrt(counts.size)


def test_regimes_keep_the_mean_rate_in_expectation():
    counts = np.array([arrivals(seed, burst_regimes(dwell_s=20.0), 1.0, 200.0).size for seed in range(800)])
    assert abs(counts.mean() - 200.0) < 4 * counts.std() / np.sqrt(counts.size)


@given(
    seed=st.integers(0, 2**32), alpha=st.floats(0.1, 4), rate_per_s=st.floats(0.01, 20), duration_s=st.floats(1, 200)
)
@calm
def test_arrivals_are_in_order_and_within_the_trace(seed, alpha, rate_per_s, duration_s):
    regimes = burst_regimes(alpha, dwell_s=10.0)
    times_s = arrivals(seed, regimes, rate_per_s, duration_s)
    assert (np.diff(times_s) >= 0).all()
    assert times_s.size == 0 or (times_s[0] >= 0 and times_s[-1] <= duration_s)


def test_alpha_one_is_exponential_and_one_half_is_not():
    def distance(alpha: float) -> float:
        gaps_s = np.sort(np.diff(arrivals(3, steady(alpha), 1.0, 20_000.0)))
        cdf, steps = 1 - np.exp(-gaps_s), np.arange(gaps_s.size + 1) / gaps_s.size
        return float(max((steps[1:] - cdf).max(), (cdf - steps[:-1]).max()))

    limit = 1.63 / np.sqrt(20_000)  # Kolmogorov-Smirnov at 1 %
    assert distance(1.0) < limit
    assert distance(0.5) > 5 * limit


def test_the_time_in_each_regime_is_that_of_the_chain():
    assert time_shares(burst_regimes()) == pytest.approx([4 / 9, 4 / 9, 1 / 9])
    rng = np.random.default_rng(0)
    regimes = burst_regimes(dwell_s=10.0)
    segments = draw_segments(rng, regimes, 1.0, 400_000.0, Profile())
    spans_s = np.diff(segments.edges_s)
    for regime, share in zip(regimes, (4 / 9, 4 / 9, 1 / 9), strict=True):
        assert spans_s[segments.alphas == regime.alpha].sum() / 4e5 == pytest.approx(share, rel=0.04)
    assert (spans_s @ segments.rates_per_s) / 4e5 == pytest.approx(1.0, rel=0.04)


def test_an_exact_path_has_its_mean_rate_in_every_trace():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        segments = draw_segments(rng, burst_regimes(), 3.0, 100.0, Profile(), is_path_exact=True)
        assert np.diff(segments.edges_s) @ segments.rates_per_s == pytest.approx(300.0)


def test_days_and_weeks_have_their_rhythm():
    times_s = arrivals(0, steady(1.0), 1.0, 4 * WEEK_S, daily=DAILY, weekly=WEEKLY)
    assert times_s.size / (4 * WEEK_S) == pytest.approx(1.0, rel=0.01)
    by_hour = np.bincount((times_s % DAY_S // HOUR_S).astype(int), minlength=24) / times_s.size * 24
    busy = np.array(DAILY) >= 60  # the night has too few calls to be counted to 3 %
    assert by_hour[busy] == pytest.approx((np.array(DAILY) / np.mean(DAILY))[busy], rel=0.03)
    by_day = np.bincount((times_s % WEEK_S // DAY_S).astype(int), minlength=7) / times_s.size * 7
    assert by_day == pytest.approx(np.array(WEEKLY) / np.mean(WEEKLY), rel=0.03)


def test_a_trace_may_begin_at_any_hour():
    profile = Profile(daily=DAILY, start_s=9.5 * HOUR_S)
    assert profile.edges_s(2 * HOUR_S).tolist() == [0, 2 * HOUR_S, 0.5 * HOUR_S, 1.5 * HOUR_S]
    expected = np.array([105, 155, 155]) / np.mean(DAILY)
    assert profile.factors(np.array([0, 0.5 * HOUR_S, 1.5 * HOUR_S])) == pytest.approx(expected)


# -- lengths


@pytest.mark.parametrize(
    ("model", "input_stats", "output_stats"),
    [
        (CHATGPT, {"mean": 761, 50: 547}, {"mean": 265, 50: 232}),
        (GPT4, {"mean": 830, 50: 582, 80: 1427, 95: 2345, 99: 3549}, {"mean": 271, 50: 243, 80: 434, 95: 669, 99: 964}),
    ],
)
def test_lengths_have_the_published_means_and_quantiles(model, input_stats, output_stats):
    rng = np.random.default_rng(0)
    inputs = model.draw_inputs(rng, 800_000)
    outputs = model.draw_outputs(rng, inputs)
    for drawn, stats in ((inputs, input_stats), (outputs, output_stats)):
        for name, value in stats.items():
            if name == "mean":
                assert drawn.mean() == pytest.approx(value, rel=0.10)
            else:
                assert np.percentile(drawn, name) == pytest.approx(value, rel=0.03)


def test_the_mean_answer_follows_its_prompt_as_measured():
    rng = np.random.default_rng(1)
    for input_tokens in (20, 30, 60, 120, 200, 300, 700, 1200, 2000, 3000):
        outputs = CHATGPT.draw_outputs(rng, np.full(50_000, float(input_tokens)))
        assert outputs.mean() == pytest.approx(
            np.interp(input_tokens, *zip(*CHATGPT_OUTPUT_BY_INPUT, strict=True)), rel=0.1
        )


def test_long_prompts_have_the_narrower_answers():
    rng = np.random.default_rng(1)
    spreads = [
        outputs.std() / outputs.mean()
        for outputs in (CHATGPT.draw_outputs(rng, np.full(20_000, at)) for at in (200.0, 2000.0))
    ]
    assert spreads[1] < 0.7 * spreads[0]


def test_a_few_prompts_are_very_long():
    inputs = replace(CHATGPT, tail_frac=TAIL_FRAC).draw_inputs(np.random.default_rng(0), 1_000_000)
    assert (inputs >= 32_768).mean() == pytest.approx(TAIL_FRAC, rel=0.2)
    assert inputs.max() < 126_000


def test_lengths_are_scaled_and_capped_for_small_models():
    model = replace(CHATGPT, scale=0.1, max_input_tokens=200)
    tokens = model.tokens(np.array([1.0, 500.0, 9000.0]), model.max_input_tokens)
    assert tokens.tolist() == [1, 50, 200]


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=50))
@calm
def test_a_table_made_from_lengths_spans_them(lengths):
    table = QuantileTable.of(np.array([0, *lengths]))
    drawn = table.quantile(np.linspace(0, 1, 11))
    assert drawn[0] == pytest.approx(min(lengths))
    assert drawn[-1] == pytest.approx(max(lengths))
    assert (np.diff(drawn) >= -1e-6).all()


# -- sessions


def test_sessions_have_the_published_turns_and_pauses():
    law, rng = SessionLaw(), np.random.default_rng(0)
    turns = law.draw_turns(rng, 200_000)
    assert (turns == 1).mean() == pytest.approx(0.41, abs=0.02)
    assert np.median(turns) == 2
    assert (turns <= 4).mean() == pytest.approx(0.75, abs=0.02)
    assert turns.mean() == pytest.approx(law.mean_turns, rel=0.02)
    assert law.mean_turns == pytest.approx(4.18, rel=0.05)
    pauses_s = law.draw_pauses_s(rng, 200_000)
    assert np.percentile(pauses_s, 50) == pytest.approx(131, rel=0.05)
    assert np.percentile(pauses_s, 90) == pytest.approx(2340, rel=0.05)
    assert pauses_s.max() <= 86_400


def session_spec(rate_per_s: float = 1.0, duration_s: float = 2000.0, **changes: object) -> GeneratorSpec:
    spec = preset("steady", rate_per_s=rate_per_s, duration_s=duration_s)
    service = replace(spec.services[0], sessions=SessionLaw(), **changes)  # type: ignore[arg-type]
    return replace(spec, services=(service,))


def test_later_turns_count_towards_the_rate():
    counts = [len(list(generate(session_spec(duration_s=200.0), seed))) for seed in range(20)]
    assert np.mean(counts) == pytest.approx(200.0, abs=4 * np.std(counts) / np.sqrt(20))


def test_a_turn_repeats_what_was_said_and_comes_after_its_pause():
    last = {}
    followed = 0
    for request in generate(session_spec(), 1):
        if (earlier := last.get(request.session)) is not None:
            followed += 1
            assert request.turn > earlier.turn
            assert request.arrival_s >= earlier.arrival_s
            if request.turn == earlier.turn + 1:
                said = min(3072, earlier.input_tokens + earlier.output_tokens)
                assert request.input_tokens >= said - 1
                answer_s = earlier.output_tokens / 30.0
                assert request.arrival_s == pytest.approx(earlier.arrival_s + answer_s + request.pause_s, abs=1e-4)
        last[request.session] = request
    assert followed > 200


def test_every_first_turn_of_a_session_has_no_pause_and_later_ones_do():
    for request in generate(session_spec(duration_s=300.0), 2):
        assert (request.pause_s is None) == (request.turn == 0)


def test_block_hashes_are_shared_by_the_turns_of_a_session_alone():
    first, second = block_hashes("s", 40, 16), block_hashes("s", 64, 16)
    assert (len(first), len(second)) == (3, 4)
    assert first[:2] == second[:2]
    assert first[2] != second[2]  # 8 tokens are not the block of 16 that begins with them
    assert not set(block_hashes("other", 64, 16)) & set(second)


# -- the whole


@pytest.mark.parametrize("name", list(Traffic))
def test_every_preset_makes_a_trace_of_its_rate(name):
    spec = preset(name, rate_per_s=2.0, duration_s=600.0)
    trace = generate(spec, 0)
    rows = list(trace)
    assert [request.arrival_s for request in rows] == sorted(request.arrival_s for request in rows)
    if name != Traffic.DAY:  # ten minutes after midnight are not the mean of a week
        assert len(rows) == pytest.approx(1200, rel=0.2)
    assert trace.header.seed == 0


def test_bursts_are_much_burstier_than_gamma_and_gamma_than_poisson_at_one_rate():
    def dispersion(name: str) -> float:
        times_s = [request.arrival_s for request in generate(preset(name, rate_per_s=2.0, duration_s=4000.0), 0)]
        counts = np.histogram(times_s, bins=400, range=(0, 4000))[0]
        return float(counts.var() / counts.mean())

    steady_index, ragged_index, burst_index = map(dispersion, ("steady", "ragged", "bursts"))
    assert steady_index == pytest.approx(1.0, abs=0.3)
    assert ragged_index == pytest.approx(2.0, abs=0.6)
    assert burst_index > 3 * ragged_index


def test_failures_rise_with_load():
    spec = preset("bursts", rate_per_s=2.0, duration_s=20_000.0)
    spec = replace(spec, services=(replace(spec.services[0], failed_frac=0.02),))
    rows = list(generate(spec, 0))
    times_s = np.array([request.arrival_s for request in rows])
    is_failed = np.array([request.is_failed for request in rows])
    load = np.arange(times_s.size) - np.searchsorted(times_s, times_s - 60)
    busy = load > np.percentile(load, 75)
    assert is_failed.mean() == pytest.approx(0.02, rel=0.2)
    assert is_failed[busy].mean() > 2 * is_failed[~busy].mean()


def test_adding_a_service_leaves_the_others_as_they_were():
    alone = preset("bursts", duration_s=300.0)
    other = replace(alone.services[0], name="other", rate_per_s=3.0)
    both = replace(alone, services=(other, *alone.services))
    assert list(generate(alone, 5)) == [request for request in generate(both, 5) if request.client.startswith("chat")]


def test_kinds_of_traffic_with_one_seed_ask_for_the_same_lengths_in_the_same_order():
    steady_rows, burst_rows = (list(generate(preset(name, duration_s=300.0), 5)) for name in ("steady", "bursts"))
    both = list(zip(steady_rows, burst_rows, strict=False))
    assert len(both) > 200
    assert all((one.input_tokens, one.output_tokens) == (two.input_tokens, two.output_tokens) for one, two in both)
    assert [one.arrival_s for one, _ in both] != [two.arrival_s for _, two in both]


def test_a_trace_is_the_same_bytes_in_another_process(tmp_path):
    code = (
        "import sys; from pathlib import Path; from penstock.workload.burstgpt import generate;"
        "from penstock.workload.presets import preset; from penstock.workload.trace import write_trace;"
        "write_trace(Path(sys.argv[1]), generate(preset('day', duration_s=900.0), 3))"
    )
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    write_trace(here, generate(preset("day", duration_s=900.0), 3))
    subprocess.run([sys.executable, "-c", code, there], check=True)
    assert here.read_bytes() == there.read_bytes()
    assert here.read_bytes() != b""


def test_the_header_is_enough_to_make_the_trace_again():
    trace = generate(preset("day", duration_s=900.0), 3)
    spec = msgspec.convert(msgspec.json.decode(msgspec.json.encode(trace.header.parameters)), GeneratorSpec)
    assert list(generate(spec, 3)) == list(trace)


@pytest.mark.parametrize(("keeps", "dwell_s"), [(True, 20.0), (False, 40.0)])
def test_a_higher_rate_keeps_either_the_calls_or_the_seconds_of_a_burst(keeps, dwell_s):
    spec = preset("bursts", rate_per_s=1.0, duration_s=600.0)
    faster = at_rate(spec, 2.0, keeps_burst_requests=keeps)
    assert faster.rate_per_s == 2.0
    assert faster.services[0].regimes[1].mean_dwell_s == dwell_s
    assert faster.services[0].lengths == spec.services[0].lengths


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Profile(daily=(1.0,)), "daily has 1 factors: give 24"),
        (lambda: replace(steady(1.0)[0], alpha=0.0), "alpha is 0.0"),
        (lambda: replace(preset("steady").services[0], regimes=()), "one or more regimes"),
        (lambda: replace(preset("steady").services[0], rate_per_s=-1.0), "rate_per_s is -1.0"),
        (lambda: replace(preset("steady").services[0], n_clients=0), "n_clients 1 or more"),
        (lambda: replace(preset("steady"), services=()), "one or more services"),
        (lambda: replace(preset("steady"), duration_s=0.0), "duration_s is 0.0"),
        (lambda: QuantileTable(((0.1, 1), (1, 2))), "from probability 0 to 1"),
        (lambda: QuantileTable(((0, 5), (1, 2))), "never fall"),
        (lambda: LengthModel(CHATGPT.inputs, CHATGPT.outputs, tail_frac=2.0), "tail_frac is 2.0"),
        (lambda: QuantileTable.of(np.array([0])), "no length above 0"),
        (lambda: generate(preset("steady", rate_per_s=1e-9, duration_s=1.0), 0), "no call fell into 1 s"),
    ],
)
def test_impossible_parameters_say_what_is_wrong(make, said):
    with pytest.raises(TraceError, match=said):
        make()


def test_a_regime_must_lead_to_regimes_that_exist():
    lost = replace(steady(1.0)[0], next_frac={"nowhere": 1.0})
    with pytest.raises(TraceError, match="regime steady: next_frac"):
        replace(preset("steady").services[0], regimes=(lost,))


def test_an_unknown_kind_of_traffic_lists_the_known_ones():
    with pytest.raises(UnknownName, match="bursts, day, ragged, steady"):
        preset("poisson")
