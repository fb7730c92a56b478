"""From texts to pools of tokens: what a training run draws its windows from.

A pool is one kind of text as one long row of tokens, each text followed by <|endoftext|>. Building the pools needs only
a processor, so it can be done ahead of a run on a device: `python -m penstock.train.pack --out pools.npz`.
"""

import argparse
import json
import random
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.bundled import TINY
from penstock.train.chat import list_entries, write_chat
from penstock.train.corpus import Document, collect, fingerprint, split
from penstock.train.tokenizer import END_OF_TEXT
from penstock.train.variants import load_lessons, write_module

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

N_MODULES = 30_000
N_CHATS = 50_000
BPE_DROPOUT = 0.1


@dataclass(frozen=True, slots=True)
class Pool:
    """One kind of text. `starts` are the places where a text begins."""

    tokens: "NDArray[np.uint16]"
    starts: "NDArray[np.int64]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """All that a run reads."""

    pools: Mapping[str, Pool]
    held_out: Pool
    held_out_bytes: int
    held_out_heads: tuple[str, ...]  # first lines of functions in held-out files, to be completed
    facts: Mapping[str, int | str]  # for the card


def make_pool(texts: Sequence[str], tokenizer: "Tokenizer") -> Pool:
    """Encode texts one after the other."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    rows = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
    starts = np.cumsum([0, *(len(row) + 1 for row in rows[:-1])], dtype=np.int64)
    return Pool(np.fromiter((token for row in rows for token in (*row, end)), dtype=np.uint16), starts)


def chat_texts(documents: Sequence[Document], tokenizer_dir: Path, n_chats: int, rng: random.Random) -> list[str]:
    """Conversations as the chat template of the model renders them."""
    from transformers import AutoTokenizer

    renderer: Any = AutoTokenizer.from_pretrained(tokenizer_dir)
    entries, lessons = list_entries(documents), load_lessons()
    chats = [write_chat(entries, lessons, rng) for _ in range(n_chats)]
    return [text.rstrip("\n") for text in renderer.apply_chat_template(chats, tokenize=False)]


def build(
    stdlib: Path, tokenizer_dir: Path, *, seed: int = 0, n_modules: int = N_MODULES, n_chats: int = N_CHATS
) -> Corpus:
    """Collect, generate and encode everything: the same each time, but for the other cuts, which are chance."""
    from tokenizers import Tokenizer

    rng = random.Random(seed)
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    documents = collect(stdlib)
    train, held_out = split(documents)
    rng.shuffle(train)
    library = [document.text for document in train if not document.is_test]
    tests = [document.text for document in train if document.is_test]
    lessons = load_lessons()
    pools = {
        "library": make_pool(library, tokenizer),
        "tests": make_pool(tests, tokenizer),
        "lessons": make_pool([write_module(lessons, rng) for _ in range(n_modules)], tokenizer),
        "chats": make_pool(chat_texts(train, tokenizer_dir, n_chats, rng), tokenizer),
    }
    # The same library in other cuts: prompts may end inside what is one token elsewhere.
    tokenizer.model.dropout = BPE_DROPOUT
    pools["library, other cuts"] = make_pool(library, tokenizer)
    tokenizer.model.dropout = None
    return Corpus(
        pools=pools,
        held_out=make_pool([document.text for document in held_out], tokenizer),
        held_out_bytes=sum(len(document.text.encode()) for document in held_out),
        held_out_heads=tuple(heads_of(held_out)),
        facts={
            "corpus": fingerprint(documents),
            "train_files": len(train),
            "train_bytes": sum(len(document.text.encode()) for document in train),
            "held_out_files": len(held_out),
            "modules": n_modules,
            "chats": n_chats,
        },
    )


def heads_of(documents: Sequence[Document]) -> list[str]:
    """The opening of every documented-style top-level function, up to and with its bracket: "def name("."""
    lines = (line for document in documents if not document.is_test for line in document.text.splitlines())
    return sorted({line[: line.index("(") + 1] for line in lines if line.startswith("def ") and "(" in line})


def save(corpus: Corpus, file: Path) -> None:
    arrays: dict[str, Any] = {"held_out/tokens": corpus.held_out.tokens, "held_out/starts": corpus.held_out.starts}
    for name, pool in corpus.pools.items():
        arrays |= {f"{name}/tokens": pool.tokens, f"{name}/starts": pool.starts}
    notes = {
        "pools": list(corpus.pools),
        "held_out_bytes": corpus.held_out_bytes,
        "held_out_heads": corpus.held_out_heads,
        "facts": dict(corpus.facts),
    }
    np.savez_compressed(file, notes=np.array(json.dumps(notes)), **arrays)


def load(file: Path) -> Corpus:
    with np.load(file) as arrays:
        notes = json.loads(str(arrays["notes"]))
        pools = {
            name: Pool(arrays[f"{name}/tokens"], arrays[f"{name}/starts"]) for name in ["held_out", *notes["pools"]]
        }
    return Corpus(
        held_out=pools.pop("held_out"),
        pools=pools,
        held_out_bytes=notes["held_out_bytes"],
        held_out_heads=tuple(notes["held_out_heads"]),
        facts=notes["facts"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the token pools that penstock.train.tiny learns from.")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--stdlib", type=Path, default=Path(sysconfig.get_paths()["stdlib"]))
    parser.add_argument("--tokenizer", type=Path, default=TINY, help="folder with tokenizer.json")
    args = parser.parse_args()
    corpus = build(args.stdlib, args.tokenizer)
    save(corpus, args.out)
    for name, pool in corpus.pools.items():
        print(f"{name}: {len(pool.starts)} texts, {len(pool.tokens) / 1e6:.2f} M tokens")
    print(f"held out: {len(corpus.held_out.tokens)} tokens, {corpus.held_out_bytes} bytes; {dict(corpus.facts)}")


if __name__ == "__main__":
    main()
