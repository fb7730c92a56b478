"""A model's tokenizer, read from its directory or its GGUF file."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from penstock.core.errors import CorruptModel, InvalidRequest, ModelNotFound
from penstock.formats.gguf import GgufFile
from penstock.formats.gguf_vocab import GgufVocab
from penstock.formats.text_file import check_size, read_object, read_text
from penstock.text.gguf_tokenizer import build_backend
from penstock.text.joiner import make_scheme
from penstock.text.library import faults_of, probe

MAX_TOKENIZER_BYTES = 1 << 28  # real ones reach 35 MB
SPECIAL_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """The named special tokens of a model, None where it has none. eos_ids: all that end an answer, sorted."""

    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    unk: str | None = None
    eos_ids: tuple[int, ...] = ()


class Tokenizer:
    """Text to ids and back. May be used from several threads at once; long encodes leave the interpreter lock."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special: SpecialTokens | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.special = special or SpecialTokens()
        self.chat_template = chat_template
        self.scheme = make_scheme(backend)
        self._backend = backend
        self._vocab_size = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)

    @classmethod
    def from_directory(cls, path: Path | str) -> Tokenizer:
        """Read tokenizer.json and the files beside it. Raises ModelNotFound or CorruptModel."""
        folder = Path(path)
        if not (folder / "tokenizer.json").is_file():
            raise ModelNotFound(
                f"{folder} has no tokenizer.json. Give the directory of a model in the Hugging Face form."
            )
        backend = _read_backend(folder / "tokenizer.json")
        config = _read_json(folder / "tokenizer_config.json")
        special = _special_tokens(backend, folder, config | _read_json(folder / "special_tokens_map.json"))
        return cls(backend, special=special, chat_template=_chat_template(folder, config))

    @classmethod
    def from_path(cls, path: Path | str) -> Tokenizer:
        """Of a model's directory, or of a GGUF file. Raises ModelNotFound, CorruptModel or UnsupportedModel."""
        return cls.from_gguf(path) if Path(path).is_file() else cls.from_directory(path)

    @classmethod
    def from_gguf(cls, path: Path | str) -> Tokenizer:
        """A tokenizer.json beside the file wins over what the file itself holds, a chat template beside it too."""
        file = GgufFile(Path(path))
        vocab = GgufVocab.of(file)
        folder = file.path.parent
        has_own = (folder / "tokenizer.json").is_file()
        backend = _read_backend(folder / "tokenizer.json") if has_own else build_backend(file, vocab)
        template = _chat_template(folder, _read_json(folder / "tokenizer_config.json")) if has_own else None
        if template is None:
            template = file.metadata.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise CorruptModel(f"{path}: tokenizer.chat_template is not a string.")
        ids = {"bos": vocab.bos_id, "eos": vocab.eos_id, "pad": vocab.pad_id, "unk": vocab.unk_id}
        roles = {role: None if i is None else backend.id_to_token(i) for role, i in ids.items()}
        return cls(backend, special=SpecialTokens(eos_ids=vocab.end_ids, **roles), chat_template=template)

    @property
    def vocab_size(self) -> int:
        """Ids are below this number; a model's own vocabulary may be padded beyond it."""
        return self._vocab_size

    @functools.cached_property
    def longest_token_chars(self) -> int:
        """No token stands for more characters than this."""
        return max(map(len, self._backend.get_vocab(with_added_tokens=True)), default=1)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self.special.eos_ids

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` leaves out of the text."""
        return self._special_ids

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text. Special tokens are added where the post-processor of tokenizer.json adds them."""
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        for text in texts:
            check_text(text)
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD, ids outside the vocabulary nothing."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's own spelling of an id (a space may be a `Ġ` there), None where it has none."""
        return self._backend.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """What an id contributes to a text; part of a character for some."""
        return self.scheme.token_bytes(token_id)

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)


def check_text(text: str, param: str = "prompt") -> None:
    """Refuse text that no tokenizer takes. Raises InvalidRequest."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{param} has half of a surrogate pair at {error.start}, which is no character: send well-formed Unicode",
            param=param,
        ) from None


def _read_backend(file: Path) -> tokenizers.Tokenizer:
    check_size(file, MAX_TOKENIZER_BYTES)
    with faults_of(file):
        backend = tokenizers.Tokenizer.from_file(str(file))
        backend.no_truncation()  # some files carry the settings of a training run
        backend.no_padding()
        probe(backend)
    return backend


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file."""
    return read_object(file) if file.exists() else {}


def _special_tokens(backend: tokenizers.Tokenizer, folder: Path, config: dict[str, Any]) -> SpecialTokens:
    bos, eos, pad, unk = (_content(config.get(role), role, folder) for role in SPECIAL_ROLES)
    eos_ids = _eos_ids(_read_json(folder / "generation_config.json"), folder)
    eos_id = None if eos is None else backend.token_to_id(eos)
    if eos_id is not None:
        eos_ids.add(eos_id)
    return SpecialTokens(bos=bos, eos=eos, pad=pad, unk=unk, eos_ids=tuple(sorted(eos_ids)))


def _content(token: object, role: str, folder: Path) -> str | None:
    """A special token as the two spellings of these files give it: a string, or an object with `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    if content is not None and not isinstance(content, str):
        raise CorruptModel(f"{role} in {folder} is a {type(content).__name__} where a string belongs.")
    return content


def _eos_ids(config: dict[str, Any], folder: Path) -> set[int]:
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int and 0 <= i < 2**31 for i in ids):
        raise CorruptModel(f"eos_token_id in {folder / 'generation_config.json'} is not a token id or a list of them.")
    return set(ids)


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The model's chat template: a file of its own wins; of several named ones, the one called `default`."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return read_text(file)
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise CorruptModel(f"chat_template in {folder / 'tokenizer_config.json'} is not a string.")
    return template
