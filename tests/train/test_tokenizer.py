import json

import minijinja
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from penstock.bundled import TINY
from penstock.train.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, VOCAB_SIZE, save_tokenizer, train_tokenizer

TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))
HUGGING_FACE = AutoTokenizer.from_pretrained(TINY)

# The four separators of ASCII are space to Python's strip() and not to Rust's.
contents = st.text(st.characters(codec="utf-8", exclude_characters="\x1c\x1d\x1e\x1f"), max_size=30)
chats = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": contents}),
    min_size=1,
    max_size=4,
)


@given(text=st.text())
def test_decoding_what_was_encoded_gives_the_text_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


@given(data=st.binary())
def test_any_bytes_survive_the_way_through_tokens(data):
    text = data.decode("latin-1")
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False).encode("latin-1") == data


@given(text=st.text(max_size=50))
def test_transformers_and_the_plain_library_read_the_same_tokens(text):
    assert HUGGING_FACE(text)["input_ids"] == TOKENIZER.encode(text).ids


def test_the_special_tokens_come_first_and_the_vocabulary_is_full():
    assert [TOKENIZER.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2]
    assert TOKENIZER.get_vocab_size() == VOCAB_SIZE == 4096


@pytest.mark.parametrize(
    "stop", ["def quicksort(", "def f(x):", "def f(x):\n", "def f(x):\n    ", "x = [", "import os\n"]
)
def test_a_prompt_that_stops_in_mid_line_has_the_tokens_of_the_whole_text(stop):
    whole = TOKENIZER.encode(stop + "self, arr").ids
    prompt = TOKENIZER.encode(stop).ids
    assert whole[: len(prompt)] == prompt


def test_the_chat_template_renders_as_documented():
    messages = [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": "Hi"}]
    assert HUGGING_FACE.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@given(messages=chats, add_generation_prompt=st.booleans())
def test_both_template_engines_render_the_same_chat(messages, add_generation_prompt):
    template = json.loads((TINY / "tokenizer_config.json").read_text())["chat_template"]
    ours = minijinja.Environment().render_str(template, messages=messages, add_generation_prompt=add_generation_prompt)
    theirs = HUGGING_FACE.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    assert ours == theirs


def test_a_trained_tokenizer_is_saved_with_its_chat_template(tmp_path):
    tokenizer = train_tokenizer(["def add(a, b):\n    return a + b\n"] * 3, vocab_size=280)
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.chat_template == CHAT_TEMPLATE
    assert loaded.decode(loaded("def add(é)")["input_ids"]) == "def add(é)"
