"""The prefix index: which block holds which content.

A block's identity is a hash chain: the key of block k covers tokens [0, (k + 1) * block_tokens) and everything else
that changes the content (salt, and extras such as an adapter). Equal keys mean equal content, so a chain of known
keys is a prefix that need not be computed.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

KEY_BYTES = 16


def root_key(salt: str, extras: Sequence[str] = ()) -> bytes:
    """Where a chain starts. Two requests share blocks only if salt and extras are the same."""
    hashed = blake2b(digest_size=KEY_BYTES)
    for part in (salt, *extras):
        data = part.encode()
        hashed.update(len(data).to_bytes(8, "little") + data)
    return hashed.digest()


def next_key(parent: bytes, tokens: array[int]) -> bytes:
    """The key of the block with these tokens behind `parent`."""
    return blake2b(parent + tokens.tobytes(), digest_size=KEY_BYTES).digest()


class KeyChain:
    """The keys of one sequence's full blocks, extended as its tokens become known."""

    def __init__(self, root: bytes, block_tokens: int, tokens: array[int]) -> None:
        self._root = root
        self._block_tokens = block_tokens
        self._tokens = tokens  # the sequence's own array; it only grows
        self._keys: list[bytes] = []

    def key(self, block: int) -> bytes:
        """The key of block number `block`, all of whose tokens must be known."""
        size = self._block_tokens
        assert (block + 1) * size <= len(self._tokens), f"block {block} is not full: {len(self._tokens)} tokens known"
        while len(self._keys) <= block:
            at = len(self._keys) * size
            parent = self._keys[-1] if self._keys else self._root
            self._keys.append(next_key(parent, self._tokens[at : at + size]))
        return self._keys[block]

    @property
    def full_blocks(self) -> int:
        return len(self._tokens) // self._block_tokens


class PrefixIndex:
    """Content key -> block of one pool, one to one."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._block_of)

    def find(self, key: bytes) -> int | None:
        return self._block_of.get(key)

    def has(self, key: bytes) -> bool:
        return key in self._block_of

    def key_of(self, block: int) -> bytes | None:
        """The key of the block's content, if that can be found."""
        return self._key_of.get(block)

    def put(self, key: bytes, block: int) -> None:
        """Note the content of a block. If another block has the same content already, that one stays the known one."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def knows(self, block: int) -> bool:
        return block in self._key_of

    def forget(self, block: int) -> None:
        """The block's content is lost."""
        del self._block_of[self._key_of.pop(block)]
