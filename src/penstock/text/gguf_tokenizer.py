"""A `tokenizers` BPE from the vocabulary and merges that a GGUF file carries.

The file names how text is cut before merging (`tokenizer.ggml.pre`), not the rule itself: only rules that are known
here, and byte-level BPE, can be rebuilt. Anything else needs the tokenizer.json that the model was published with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from penstock.core.errors import CorruptModel, UnsupportedModel
from penstock.formats.gguf import GgufFile
from penstock.formats.gguf_vocab import CONTROL, UNUSED, USER_DEFINED, GgufVocab, strings
from penstock.text.library import faults_of, probe

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How one kind cuts text. pattern None: GPT-2's own. takes_whole: a piece that is a token needs no merges."""

    pattern: str | None
    takes_whole: bool = False
    is_composed: bool = False
    adds_bos: bool = False


LLAMA3 = Cut(pattern=_WORDS % r"\p{N}{1,3}", takes_whole=True, adds_bos=True)
CUTS: Mapping[str, Cut] = {
    "gpt-2": Cut(pattern=None),
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "qwen2": Cut(pattern=_WORDS % r"\p{N}", is_composed=True),
}


def build_backend(file: GgufFile, vocab: GgufVocab) -> Tokenizer:
    """Raises UnsupportedModel for a kind that cannot be rebuilt, CorruptModel for a vocabulary that makes no sense."""
    cut = _cut(file)
    ids = {token: at for at, token in enumerate(vocab.tokens) if vocab.kinds[at] != UNUSED}
    if len(ids) + vocab.kinds.count(UNUSED) != len(vocab.tokens):
        raise CorruptModel(f"{file.path}: its vocabulary holds the same token twice")
    with faults_of(file.path):
        backend = _assemble(file, vocab, ids, cut)
        probe(backend)
    return backend


def _assemble(file: GgufFile, vocab: GgufVocab, ids: dict[str, int], cut: Cut) -> Tokenizer:
    backend = Tokenizer(_model(file, ids, cut))
    if cut.is_composed:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(cut)
    backend.decoder = decoders.ByteLevel()
    for kind, is_special in ((CONTROL, True), (USER_DEFINED, False)):
        added = [token for token, at in ids.items() if vocab.kinds[at] == kind and token]
        backend.add_tokens([AddedToken(token, normalized=False, special=is_special) for token in added])
    if vocab.bos_id is not None and _adds_bos(file, cut):
        bos = vocab.tokens[vocab.bos_id]
        backend.post_processor = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, vocab.bos_id)])
    return backend


def _cut(file: GgufFile) -> Cut:
    kind, pre = (file.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind == "gpt2" and isinstance(pre, str) and pre in CUTS:
        return CUTS[pre]
    raise UnsupportedModel(
        f"{file.path} has a tokenizer of kind {kind!r:.40} with pre-tokenizer {pre!r:.40}; rebuilt can be 'gpt2' with "
        f"{', '.join(CUTS)}. Put the model's own tokenizer.json into the same folder"
    )


def _model(file: GgufFile, ids: dict[str, int], cut: Cut) -> models.BPE:
    merges = []
    for merge in strings(file, "tokenizer.ggml.merges"):
        at = merge.find(" ", 1)
        left, right = merge[:at], merge[at + 1 :]
        if at < 0 or left not in ids or right not in ids or left + right not in ids:
            raise CorruptModel(f"{file.path}: the merge {merge!r:.80} does not join two tokens into a third")
        merges.append((left, right))
    return models.BPE(vocab=ids, merges=merges, ignore_merges=cut.takes_whole)


def _pre_tokenizer(cut: Cut) -> pre_tokenizers.PreTokenizer:
    if cut.pattern is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    split = pre_tokenizers.Split(Regex(cut.pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _adds_bos(file: GgufFile, cut: Cut) -> bool:
    value = file.metadata.get("tokenizer.ggml.add_bos_token", cut.adds_bos)
    if not isinstance(value, bool):
        raise CorruptModel(f"{file.path}: tokenizer.ggml.add_bos_token is {value!r:.40}, expected true or false")
    return value
