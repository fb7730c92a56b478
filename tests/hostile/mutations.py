"""Damage to the files of a model: seeded, of the kinds that happen and of the kinds that somebody would try."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEP, LONG = "@deep@", "@long@"  # stand for text that json.dumps cannot write
DEPTH, LONG_CHARS = 100_000, 3_000_000
SCALARS: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64, -(2**63), 10**400,
    0.0, -0.5, 0.3, 1.0, 1e308, 1e-320, float("nan"), float("inf"), float("-inf"),
    "", "\0", "\ud800", "a\nb\x1b[31mred", "../../x", "/dev/zero", "x" * 300, "auto", "F32", DEEP, LONG,
]  # fmt: skip
OTHERS: list[Any] = [
    [],
    {},
    [[]],
    [None],
    [-1],
    [2**40] * 3,
    ["\ud800"],
    {"a": {}},
    {"": None},
    list(range(70_000)),
    [{}] * 9,
]
NASTY = SCALARS + OTHERS
SIZES = [0, 1, 2**7, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def mutate_json(text: str, rng: random.Random) -> bytes:
    """Mostly one or two values of the tree; now and then the bytes themselves."""
    if rng.random() < 0.15:
        return mutate_bytes(text.encode(), rng, len(text))
    tree = json.loads(text)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        tree = _mutate_tree(tree, rng)
    written = json.dumps(tree)
    written = written.replace(f'"{DEEP}"', rng.choice(["[", '{"a":']) * DEPTH)
    written = written.replace(f'"{LONG}"', f'"{"y" * LONG_CHARS}"')
    if rng.random() < 0.1:  # a key twice; which of the two counts is for the reader to say
        written = written[:-1] + ", " + written[1:]
    return written.encode()


def _mutate_tree(tree: Any, rng: random.Random) -> Any:
    """Walk down a random way and change what stands at its end."""
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.15:
        return copy.deepcopy(rng.choice(NASTY))  # what comes later must not change the list
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    key = rng.choice(keys)
    match rng.random():
        case chance if chance < 0.12:
            del tree[key]
        case chance if chance < 0.2 and isinstance(tree, list):
            tree.extend(tree[:50])
        case chance if chance < 0.2:
            tree[rng.choice(["added", "a\nb", "\ud800", "z" * 5000])] = copy.deepcopy(tree[key])
        case _:
            tree[key] = _mutate_tree(tree[key], rng)
    return tree


def mutate_bytes(data: bytes, rng: random.Random, header_bytes: int) -> bytes:
    """Cut, flip, overwrite or repeat, mostly within the first `header_bytes`."""
    whole = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(max(1, min(header_bytes, len(whole))))
        match rng.randrange(7):
            case 0:
                return bytes(whole[: rng.choice([at, rng.randrange(len(whole) + 1)])])
            case 1 | 2:
                whole[at : at + 1] = bytes([rng.randrange(256)])
            case 3 | 4:
                width = rng.choice([4, 8, 8])
                whole[at : at + width] = (rng.choice(SIZES) & (2 ** (8 * width) - 1)).to_bytes(width, "little")
            case 5:
                whole[at:at] = whole[at : at + rng.randrange(64)]
            case 6:
                del whole[at : at + rng.randrange(1, 64)]
    return bytes(whole)


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    header_bytes = int.from_bytes(data[:8], "little")
    if rng.random() < 0.4:
        return mutate_bytes(data, rng, 8 + header_bytes)
    header = mutate_json(data[8 : 8 + header_bytes].decode(), rng)
    return len(header).to_bytes(8, "little") + header + data[8 + header_bytes :]


def mutate_gguf(data: bytes, rng: random.Random) -> bytes:
    """Lengths and types lie at every byte, so any window is overwritten by a size."""
    return mutate_bytes(data, rng, data.find(b"ffn_down") + 2000)


def mutate_file(path: Path, rng: random.Random) -> None:
    change: Callable[[bytes, random.Random], bytes] = {
        ".safetensors": mutate_safetensors,
        ".gguf": mutate_gguf,
    }.get(path.suffix, lambda data, rng: mutate_json(data.decode(), rng))
    path.write_bytes(change(path.read_bytes(), rng))
