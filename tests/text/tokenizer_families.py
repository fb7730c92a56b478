"""Tokenizers of each family that is in use, small and made on the spot."""

import functools
from collections.abc import Callable

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.trainers import BpeTrainer

from penstock.text.tokenizer import Tokenizer

TEXT = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps.",
    "Üben macht den Meister; naïve café, déjà vu.",
    "你好，世界。我们在写一个推理系统。",
    "🙂🎉 family: 👨‍👩‍👧 flags: 🇫🇷",
    "שלום עולם",
    "def f(x):\n    return x + 1\n",
]


def byte_level() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=330, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(TEXT, trainer)
    backend.add_tokens([AddedToken("<tool call>", special=False), AddedToken("né", special=False)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return backend


def sentence_vocab() -> dict[str, int]:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    pieces += ["▁", "▁▁", "▁the", "▁dog", "the", "s", "a", "▁a", "b", "é", "你", "好", ".", "x▁y", "�", "e", "t", "h"]
    return {piece: i for i, piece in enumerate(pieces)}


def sentence_pieces(prefix_space: bool = True) -> Backend:
    """As Llama 2 and Mistral have it; without the prefix space, as Gemma."""
    backend = Backend(models.BPE(vocab=sentence_vocab(), merges=[], unk_token="<unk>", byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix_space else replace
    strip = [decoders.Strip(" ", 1, 0)] if prefix_space else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


def metaspace() -> Backend:
    backend = Backend(models.BPE(vocab=sentence_vocab(), merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


def word_piece() -> Backend:
    words = ["[UNK]", "[CLS]", "the", "dog", "##s", "##y", ".", ",", "do", "n", "'", "t", "a", "##a"]
    backend = Backend(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[CLS]"])
    return backend


def odd() -> Backend:
    """Byte level with a rule that only the library knows."""
    backend = byte_level()
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(Regex("[ ]+x"), "_x")])
    return backend


FAMILIES: dict[str, Callable[[], Backend]] = {
    "byte level": byte_level,
    "sentence pieces": sentence_pieces,
    "sentence pieces, no prefix": functools.partial(sentence_pieces, prefix_space=False),
    "metaspace": metaspace,
    "word piece": word_piece,
}


@functools.cache
def tokenizer_of(family: str) -> Tokenizer:
    return Tokenizer(FAMILIES[family]())
