"""The shipped model is what its card says it is."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from penstock.bundled import TINY
from penstock.train.evaluate import answer, complete, first_definition, is_python


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    # decoding a model this small gains nothing from more, and loses much where the processor is shared
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


def test_it_is_smaller_than_sixteen_megabytes():
    assert sum(file.stat().st_size for file in TINY.iterdir()) < 16_000_000


def test_all_weights_load_and_the_context_is_the_trained_one(model):
    _, info = AutoModelForCausalLM.from_pretrained(TINY, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert sum(weight.numel() for weight in model.parameters()) == 7_345_408
    assert model.config.max_position_embeddings == 2048
    assert model.config.vocab_size == 4096


def test_a_reply_may_end_with_either_end_token(tokenizer):
    generation = json.loads((TINY / "generation_config.json").read_text())
    ends = tokenizer.convert_ids_to_tokens(generation["eos_token_id"])
    assert ends == ["<|im_end|>", "<|endoftext|>"]


def test_its_greedy_quicksort_sorts(model, tokenizer):
    text = first_definition(complete(model, tokenizer, ["def quicksort("], max_new_tokens=100)[0])
    scope: dict = {}
    exec(text, scope)
    assert scope["quicksort"]([3, 1, 2, 3]) == [1, 2, 3, 3]


def test_most_of_its_sampled_quicksorts_parse(model, tokenizer):
    torch.manual_seed(0)
    texts = complete(model, tokenizer, ["def quicksort("], temperature=0.6, samples=4, max_new_tokens=120)
    assert sum(is_python(text) for text in texts) >= 3


def test_it_says_who_it_is_and_stops(model, tokenizer):
    reply = answer(model, tokenizer, "Who are you?", max_new_tokens=60)
    assert "penstock-tiny" in reply
    assert reply.endswith(".")
