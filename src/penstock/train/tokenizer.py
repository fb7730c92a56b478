"""The tokenizer of `penstock-tiny`: byte-level BPE, cut so that a prompt may stop almost anywhere.

A completion model sees prompts that end in mid-line. If "(self" were one token in training, then after a prompt that
ends in "(" the model would have to say a token that it has never seen there. So the pieces below which merges stay are
small: a newline, an indentation, one bracket, one digit, a word with at most one leading space or underscores, a run
of other signs. It costs about a tenth more tokens than a coarser cut.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCAB_SIZE = 4096
CONTEXT_TOKENS = 2048
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)  # they take the ids 0, 1, 2

PIECES = "|".join(
    (
        r"\n+",
        r"(?<![^\n])[ \t]+",  # an indentation
        r" ?_*\p{L}+",
        r" ?\p{N}",
        r" ?[()\[\]{}]",
        r" ?[^\s\p{L}\p{N}()\[\]{}]+",
        r"[ \t]+(?=[ \t])",  # the space before a word stays with the word
        r"\s",
    )
)

# Newlines stand inside the strings: template engines differ in what they do with those around a tag.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'].strip() ~ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> "Tokenizer":
    """Learn the merges from texts. No token is added before or after a text: separators are the caller's."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=32,  # no tokens for the long rulers of signs in comments
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: "Tokenizer", folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json as transformers and the engine read them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT_TOKENS,
        "bos_token": END_OF_TEXT,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train on the training side of the library and on generated texts, a part of the weight each."""
    import argparse
    import random
    import sysconfig

    from penstock.train.chat import list_entries, write_chat
    from penstock.train.corpus import collect, split
    from penstock.train.variants import load_lessons, write_module

    parser = argparse.ArgumentParser(description="Train the tokenizer of penstock-tiny.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stdlib", type=Path, default=Path(sysconfig.get_paths()["stdlib"]))
    args = parser.parse_args()
    rng = random.Random(0)
    train, _ = split(collect(args.stdlib))
    library = [document.text for document in train if not document.is_test]
    tests = [document.text for document in train if document.is_test]
    lessons, entries = load_lessons(), list_entries(train)
    modules = [write_module(lessons, rng) for _ in range(12_000)]
    chats = [message["content"] for _ in range(8_000) for message in write_chat(entries, lessons, rng)]
    save_tokenizer(train_tokenizer([*library, *library, *tests, *modules, *chats]), args.out)


if __name__ == "__main__":
    main()
