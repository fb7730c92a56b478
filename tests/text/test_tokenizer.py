import json
from pathlib import Path

import pytest
from tokenizer_families import byte_level
from tokenizers import Tokenizer as Backend

from penstock.core.errors import CorruptModel, InvalidRequest, ModelNotFound
from penstock.text.tokenizer import Tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "tokenizer_config.json", {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}})
    return tmp_path


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def test_text_goes_to_ids_and_back(folder):
    tokenizer = Tokenizer.from_directory(folder)
    text = "naïve café, 你好 🙂"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "x"], add_special_tokens=False) == [
        ids,
        tokenizer.encode("x", add_special_tokens=False),
    ]


def test_the_post_processor_says_which_special_tokens_are_added(folder):
    tokenizer = Tokenizer.from_directory(folder)
    plain = tokenizer.encode("dog", add_special_tokens=False)
    assert tokenizer.encode("dog") == [tokenizer.token_to_id("<s>"), *plain]
    assert tokenizer.decode(tokenizer.encode("dog")) == "dog"
    assert tokenizer.decode(tokenizer.encode("dog"), skip_special_tokens=False) == "<s>dog"


def test_truncation_and_padding_of_the_file_are_switched_off(folder):
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=10)
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(folder)
    assert len(tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 3)) > 10
    assert tokenizer.encode("") == [0]


def test_special_tokens_come_from_all_files_that_may_name_them(folder):
    write(folder, "special_tokens_map.json", {"pad_token": "<s>"})
    write(folder, "generation_config.json", {"eos_token_id": [7, 5]})
    tokenizer = Tokenizer.from_directory(folder)
    assert (tokenizer.special.bos, tokenizer.special.eos, tokenizer.special.pad) == ("<s>", "</s>", "<s>")
    assert tokenizer.eos_token_ids == (1, 5, 7)
    assert tokenizer.special_ids == {0, 1}
    assert tokenizer.id_to_token(1) == "</s>"
    assert tokenizer.id_to_token(10**6) is None


def test_a_template_file_wins_over_the_config(folder):
    write(folder, "tokenizer_config.json", {"chat_template": "from config"})
    assert Tokenizer.from_directory(folder).chat_template == "from config"
    write(folder, "chat_template.jinja", "from file")
    assert Tokenizer.from_directory(folder).chat_template == "from file"


def test_of_named_templates_the_default_is_taken(folder):
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    write(folder, "tokenizer_config.json", {"chat_template": named})
    assert Tokenizer.from_directory(folder).chat_template == "d"


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(ModelNotFound, match=r"has no tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}'),
        ("tokenizer_config.json", "not json"),
        ("tokenizer_config.json", "[" * 100_000),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", {"bos_token": 5}),
        ("tokenizer_config.json", {"eos_token": {"content": []}}),
        ("tokenizer_config.json", {"chat_template": {}}),
        ("generation_config.json", {"eos_token_id": "two"}),
        ("generation_config.json", {"eos_token_id": [-1]}),
        ("special_tokens_map.json", "\ufeff{}"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(folder, name, content):
    write(folder, name, content)
    with pytest.raises(CorruptModel) as caught:
        Tokenizer.from_directory(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    assert str(folder) in message


@pytest.mark.parametrize("text", ["\ud800", "fine \udfff"])
def test_text_that_is_no_unicode_is_refused_before_the_library_sees_it(folder, text):
    with pytest.raises(InvalidRequest):
        Tokenizer.from_directory(folder).encode(text)


def test_control_characters_are_text_like_any_other(folder):
    tokenizer = Tokenizer.from_directory(folder)
    assert tokenizer.decode(tokenizer.encode("a\0b\x01", add_special_tokens=False)) == "a\0b\x01"


@pytest.mark.parametrize("bad", [b"\xff\xfe", b'{"a": "\xff"}'])
def test_a_config_that_is_no_utf8_is_corrupt(folder, bad):
    (folder / "tokenizer_config.json").write_bytes(bad)
    with pytest.raises(CorruptModel):
        Tokenizer.from_directory(folder)
