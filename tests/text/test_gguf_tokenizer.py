"""A tokenizer rebuilt from a GGUF file cuts every text as the tokenizer.json of the same model."""

from __future__ import annotations

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.gguf_files import add_vocab, finish
from tokenizer_families import TEXT
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from penstock.core.errors import CorruptModel, UnsupportedModel
from penstock.text.tokenizer import Tokenizer as Ours

# as Llama 3 publishes it in its tokenizer.json
LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
USER_DEFINED = ["<tool_call>"]
MORE_TEXT = [
    "It's 2024-12-31, 1234567 don't WE'LL",
    "   spaces\n\n\n and\ttabs \r\n ",
    "x" * 20,
    "..!!??",
    "１２３ ½ Ⅷ",
]


def published(regex, is_composed, takes_whole, adds_bos):
    """A tokenizer as its makers would publish it, small."""
    backend = Tokenizer(models.BPE(ignore_merges=takes_whole))
    if is_composed:
        backend.normalizer = normalizers.NFC()
    if regex is None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(regex), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator((TEXT + MORE_TEXT) * 2, trainer)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in USER_DEFINED])
    if adds_bos:
        bos = (SPECIAL[0], backend.token_to_id(SPECIAL[0]))
        backend.post_processor = processors.TemplateProcessing(single=[bos[0], "$A"], special_tokens=[bos])
    return backend


PUBLISHED = {
    "llama-bpe": lambda: published(LLAMA3_REGEX, False, True, True),
    "qwen2": lambda: published(PRETOKENIZE_REGEX, True, False, False),
    "gpt-2": lambda: published(None, False, False, False),
}


def write(path, backend, pre, change=lambda writer: None, n_unused=0):
    writer = gguf.GGUFWriter(path, "llama")
    add_vocab(writer, backend, pre, USER_DEFINED, n_unused)
    writer.add_bos_token_id(backend.token_to_id(SPECIAL[0]))
    writer.add_eos_token_id(backend.token_to_id(SPECIAL[1]))
    change(writer)
    finish(writer)
    return path


@pytest.fixture(scope="module", params=PUBLISHED)
def pair(request, tmp_path_factory):
    """(as published, as rebuilt from GGUF)"""
    backend = PUBLISHED[request.param]()
    path = write(tmp_path_factory.mktemp("gguf") / "m.gguf", backend, request.param, n_unused=3)
    return Ours(backend), Ours.from_path(path)


words = st.sampled_from([*SPECIAL, *USER_DEFINED, *TEXT, *MORE_TEXT, "e\u0301", "  ", "'S", "\r\n", "99999"])
texts = st.lists(st.one_of(words, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))).map(
    "".join
)


@given(text=texts)
@settings(max_examples=300, deadline=None)
def test_every_text_has_the_ids_that_the_published_tokenizer_gives(pair, text):
    expected, rebuilt = pair
    assert rebuilt.encode(text) == expected.encode(text)
    assert rebuilt.encode(text, add_special_tokens=False) == expected.encode(text, add_special_tokens=False)


@given(ids=st.lists(st.integers(0, 430)))
@settings(max_examples=200, deadline=None)
def test_every_list_of_ids_has_the_same_text(pair, ids):
    expected, rebuilt = pair
    assert rebuilt.decode(ids) == expected.decode(ids)
    assert rebuilt.decode(ids, skip_special_tokens=False) == expected.decode(ids, skip_special_tokens=False)
    assert [rebuilt.token_bytes(i) for i in ids] == [expected.token_bytes(i) for i in ids]


def test_special_ids_are_the_same(pair):
    expected, rebuilt = pair
    assert rebuilt.special_ids == expected.special_ids
    assert rebuilt.special.bos == SPECIAL[0]
    assert rebuilt.special.eos == SPECIAL[1]
    assert rebuilt.eos_token_ids == tuple(expected.token_to_id(token) for token in SPECIAL[1:])


def test_the_chat_template_comes_from_the_file(tmp_path):
    path = write(
        tmp_path / "m.gguf", PUBLISHED["qwen2"](), "qwen2", lambda writer: writer.add_chat_template("from gguf")
    )
    assert Ours.from_path(path).chat_template == "from gguf"


def test_whether_texts_begin_with_bos_is_the_files_choice(tmp_path):
    backend = PUBLISHED["llama-bpe"]()
    path = write(tmp_path / "m.gguf", backend, "llama-bpe", lambda writer: writer.add_add_bos_token(False))
    assert Ours.from_path(path).encode("dog") == Ours(backend).encode("dog")[1:]


@pytest.mark.parametrize(("model", "pre"), [("llama", "default"), ("gpt2", "tekken"), ("bert", "jina")])
def test_other_kinds_ask_for_the_tokenizer_of_the_model(model, pre, tmp_path):
    backend = PUBLISHED["gpt-2"]()

    def change(writer):
        writer.kv_data[0].pop("tokenizer.ggml.model")
        writer.add_tokenizer_model(model)

    path = write(tmp_path / "m.gguf", backend, pre, change)
    with pytest.raises(UnsupportedModel, match=r"kind .* with pre-tokenizer .*tokenizer\.json into the same folder"):
        Ours.from_path(path)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Ours.from_path(path).encode("The dog") == Ours(backend).encode("The dog")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens", ["a", "a"]),
        ("merges", ["ab"]),
        ("merges", ["a zzzzz"]),
        ("token_type", [1]),
        ("tokens", "text"),
    ],
)
def test_a_vocabulary_that_makes_no_sense_is_corrupt(key, value, tmp_path):
    def change(writer):
        writer.kv_data[0].pop(f"tokenizer.ggml.{key}")
        add = writer.add_string if isinstance(value, str) else writer.add_array
        add(f"tokenizer.ggml.{key}", value)
        if key == "tokens":
            writer.kv_data[0].pop("tokenizer.ggml.token_type")

    path = write(tmp_path / "m.gguf", PUBLISHED["qwen2"](), "qwen2", change)
    with pytest.raises(CorruptModel):
        Ours.from_path(path)
