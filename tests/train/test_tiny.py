"""The training run, on a model of a few thousand weights and a library of three files."""

import dataclasses
import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from penstock.bundled import TINY
from penstock.train import pack
from penstock.train.card import Report, write_card
from penstock.train.evaluate import Loss, first_definition, held_out_loss, is_python
from penstock.train.model import save_model
from penstock.train.tiny import SHARES, Feed, Recipe, make_model, rate, train

MICRO = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
RECIPE = Recipe(max_steps=2, windows=4, window_tokens=64, evaluations=2, is_compiled=False, shape=MICRO)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    stdlib = tmp_path_factory.mktemp("stdlib")
    (stdlib / "test").mkdir()
    source = Path(sysconfig.get_paths()["stdlib"])
    for name in ("textwrap.py", "bisect.py", "stat.py"):  # the last one is held out
        shutil.copyfile(source / name, stdlib / name)
    (stdlib / "test" / "test_add.py").write_text("assert 1 + 1 == 2\n" * 50)
    return pack.build(stdlib, TINY, n_modules=20, n_chats=20)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Clock:
    """Each look at it takes a second."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        self.now_s += 1.0
        return self.now_s


def test_the_pools_hold_whole_texts_and_the_held_out_file_apart(corpus):
    assert corpus.pools.keys() == SHARES.keys()
    assert corpus.facts["train_files"] == 3
    assert corpus.facts["held_out_files"] == 1
    assert all(head.startswith("def ") and head.endswith("(") for head in corpus.held_out_heads)
    for pool in corpus.pools.values():
        ends = np.flatnonzero(pool.tokens == 0)
        assert ends.tolist() == [*(pool.starts[1:] - 1), len(pool.tokens) - 1]


def test_saved_pools_load_as_they_were(corpus, tmp_path):
    pack.save(corpus, tmp_path / "pools.npz")
    loaded = pack.load(tmp_path / "pools.npz")
    assert dataclasses.replace(loaded, pools={}, held_out=None) == dataclasses.replace(corpus, pools={}, held_out=None)
    for name, pool in corpus.pools.items():
        np.testing.assert_array_equal(loaded.pools[name].tokens, pool.tokens)
        np.testing.assert_array_equal(loaded.pools[name].starts, pool.starts)


def test_a_feed_repeats_itself_with_its_seed_and_draws_only_from_its_pools(corpus):
    def draws(seed):
        feed = Feed({"chats": corpus.pools["chats"]}, SHARES, seed, "cpu")
        return torch.cat([feed.draw(4, 33) for _ in range(3)])

    windows = draws(0)
    assert windows.shape == (12, 33)
    assert torch.equal(windows, draws(0))
    assert not torch.equal(windows, draws(1))
    text = " ".join(map(str, corpus.pools["chats"].tokens.tolist()))
    assert all(" ".join(map(str, row)) in text for row in windows.tolist())


def test_training_lowers_the_loss_on_one_repeated_window(corpus):
    row = corpus.pools["lessons"].tokens[:65]
    pool = pack.Pool(np.tile(row, 4), np.array([0], dtype=np.int64))
    same = dataclasses.replace(corpus, pools={"lessons": pool}, held_out=pool, held_out_bytes=200)
    recipe = dataclasses.replace(RECIPE, max_steps=10, dropout=0.0, evaluations=10)
    run = train(same, recipe, "cpu", Clock(), lambda line: None)
    assert run.steps == 10
    assert run.losses[-1] < run.losses[0] - 0.3


def test_a_run_keeps_the_weights_of_its_lowest_held_out_loss(corpus):
    run = train(corpus, RECIPE, "cpu", Clock(), lambda line: None)
    loss = held_out_loss(run.model, corpus.held_out, corpus.held_out_bytes, RECIPE.window_tokens)
    assert loss == min(run.held_out, key=lambda loss: loss.nats_per_token)
    assert run.best_step in (1, 2)


def test_a_run_ends_when_its_time_is_spent(corpus):
    recipe = dataclasses.replace(RECIPE, max_steps=None, minutes=0.05, evaluations=1)
    lines: list[str] = []
    run = train(corpus, recipe, "cpu", Clock(), lines.append)
    assert run.steps == 3  # three seconds, one look at the clock per step
    assert len(lines) == 1


def test_the_rate_rises_then_falls_to_its_last_share():
    rates = [rate(progress / 100, RECIPE) for progress in range(101)]
    peak = rates.index(max(rates))
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates) == pytest.approx(RECIPE.learning_rate)
    assert rates[-1] == pytest.approx(RECIPE.learning_rate * RECIPE.final_rate_frac)


def test_a_saved_model_loads_in_transformers_with_the_same_answers(tmp_path):
    model = make_model(RECIPE, "cpu").eval()
    save_model(model, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.bfloat16())  # as saved
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    ("text", "kept", "parses"),
    [
        ("def f(a):\n    return a\n\n\ndef g(", "def f(a):\n    return a\n", True),
        ("def f(\n    a,\n):\n    return a\nx = (", "def f(\n    a,\n):\n    return a\n", True),
        ("def f(a):\n    return (a", "def f(a):\n    return (a\n", False),
        ("def f(", "def f(\n", False),
    ],
)
def test_a_completion_is_judged_up_to_its_second_statement(text, kept, parses):
    assert first_definition(text) == kept
    assert is_python(text) == parses


def test_the_card_tells_what_was_measured(tmp_path, corpus):
    report = Report(
        loss=Loss(1.5, 0.75),
        parse_rates={"classic, greedy": 0.5},
        samples=("def f():\n    pass\n",),
        chats=(("Who?", "Me."),),
        n_heads=3,
        n_parameters=7_000_000,
        steps=10,
        best_step=9,
        step_tokens=100,
        seconds=60.0,
        evaluations=2,
        seed=0,
        minutes=1.0,
        context_tokens=64,
        device="a device",
        facts=corpus.facts,
        tokens={"library": 5},
    )
    write_card(report, tmp_path)
    card = (tmp_path / "README.md").read_text()
    for part in (
        "1.500 nats/token, 0.750 bits/byte",
        "| classic, greedy | 50.0% |",
        "def f():",
        "> Who?\n\nMe.",
        "PSF",
    ):
        assert part in card
