"""The prefix index: which block holds which content.

A block's identity is a hash chain: the key of block k covers tokens [0, (k + 1) * block_tokens) and everything else
that changes the content (salt, and extras such as an adapter). Equal keys mean equal content, so a chain of known
keys is a prefix that need not be computed.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

KEY_BYTES = 16


def root_key(salt: str, extras: Sequence[str] = ()) -> bytes:
    """Where a chain starts. Two requests share blocks only if salt and extras are the same."""
    hashed = blake2b(digest_size=KEY_BYTES)
    for part in (salt, *extras):
        data = part.encode()
        hashed.update(len(data).to_bytes(8, "little") + data)
    return hashed.digest()


class KeyChain:
    """The keys of one sequence's full blocks, extended as its tokens become known.

    A key is the hash of the key before it and the block's tokens.
    """

    def __init__(self, root: bytes, block_tokens: int, tokens: array[int]) -> None:
        self._root = root
        self._block_tokens = block_tokens
        self._tokens = tokens  # the sequence's own array; it only grows
        self._keys: list[bytes] = []

    def key(self, block: int) -> bytes:
        """The key of block number `block`, all of whose tokens must be known."""
        self._extend(block + 1)
        return self._keys[block]

    def keys(self, start: int, stop: int) -> list[bytes]:
        """Those of blocks [start, stop)."""
        self._extend(stop)
        return self._keys[start:stop]

    def _extend(self, n_blocks: int) -> None:
        begun, size = len(self._keys), self._block_tokens
        if n_blocks <= begun:
            return
        assert n_blocks * size <= len(self._tokens), (
            f"block {n_blocks - 1} is not full: {len(self._tokens)} tokens known"
        )
        data = self._tokens[begun * size : n_blocks * size].tobytes()
        stride = size * self._tokens.itemsize
        key = self._keys[-1] if begun else self._root
        for at in range(0, len(data), stride):
            key = blake2b(key + data[at : at + stride], digest_size=KEY_BYTES).digest()
            self._keys.append(key)

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
        self.put_all((key,), (block,))

    def put_all(self, keys: Iterable[bytes], blocks: Iterable[int]) -> None:
        """The same for many."""
        block_of, key_of = self._block_of, self._key_of
        for key, block in zip(keys, blocks, strict=True):
            if key not in block_of and block not in key_of:
                block_of[key] = block
                key_of[block] = key

    def knows(self, block: int) -> bool:
        return block in self._key_of

    def forget(self, block: int) -> None:
        """The block's content is lost."""
        del self._block_of[self._key_of.pop(block)]
