"""The prefix index: which block holds which content.

A block's identity is a hash chain: the key of block k covers tokens [0, (k + 1) * block_tokens) and everything else
that changes the content (salt, and extras such as an adapter). Equal keys mean equal content, so a chain of known
keys is a prefix that need not be computed.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
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


class _Family:
    """What was noted of all chains that begin with one key. chain: the only one of them, if there was no other: then
    its blocks have no keys yet, but places: numbers of blocks in the chain, all below `stop`. n_blocks: that have
    content of the family.
    """

    __slots__ = ("chain", "first_key", "n_blocks", "places", "stop")

    def __init__(self, first_key: bytes, chain: KeyChain) -> None:
        self.first_key = first_key
        self.chain: KeyChain | None = chain
        self.places: dict[int, int] = {}  # by block
        self.stop = 0
        self.n_blocks = 0


class PrefixIndex:
    """Content key -> block of one pool, one to one.

    Keys are worked out when they can matter: chains whose first keys differ have no key in common, so what only one
    chain of a family brought is noted by its place in that chain, and gets its keys when a second one comes. A chain,
    with its tokens, is kept as long as blocks are noted by it.
    """

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._family_of: dict[int, _Family | None] = {}  # of every known block; None: it was put by its key
        self._families: dict[bytes, _Family] = {}  # by their first key
        self._unnamed: dict[bytes, _Family] = {}  # those of one chain, whose blocks have no keys yet
        self._are_some_put = False  # by key: then nothing is known of their families
        self.knows: Callable[[int], bool] = self._family_of.__contains__  # is the block's content known?

    def __len__(self) -> int:
        return len(self._family_of)

    def find(self, key: bytes) -> int | None:
        self._name_all()
        return self._block_of.get(key)

    def has(self, key: bytes) -> bool:
        self._name_all()
        return key in self._block_of

    def of(self, chain: KeyChain) -> Mapping[bytes, int]:
        """The block of every key of this chain that is known, among others; to be asked at once."""
        if self._unnamed and chain.full_blocks:
            family = self._unnamed.get(chain.key(0))
            if family is not None:
                self._name(family)
        return self._block_of

    def key_of(self, block: int) -> bytes | None:
        """The key of the block's content, if that can be found."""
        family = self._family_of.get(block)
        if family is not None and family.chain is not None:
            return family.chain.key(family.places[block])
        return self._key_of.get(block)

    def put(self, key: bytes, block: int) -> None:
        """Note the content of a block. If another block has the same content already, that one stays the known one."""
        self._name_all()
        self._are_some_put = True
        self._put_all((key,), (block,), None)

    def note(self, chain: KeyChain, start: int, blocks: Sequence[int]) -> None:
        """The same for the blocks of a chain from number `start` on, which are all full."""
        first_key = chain.key(0)
        family = self._families.get(first_key)
        if family is None:
            family = self._families[first_key] = self._unnamed[first_key] = _Family(first_key, chain)
        is_new = family.chain is chain and start >= family.stop and self._family_of.keys().isdisjoint(blocks)
        if is_new and not self._are_some_put:
            family.stop = start + len(blocks)
            family.places |= zip(blocks, range(start, family.stop), strict=True)
            family.n_blocks += len(blocks)
            self._family_of |= dict.fromkeys(blocks, family)
            return
        self._name(family)
        self._put_all(chain.keys(start, start + len(blocks)), blocks, family)

    def _put_all(self, keys: Iterable[bytes], blocks: Iterable[int], family: _Family | None) -> None:
        for key, block in zip(keys, blocks, strict=True):
            if key not in self._block_of and block not in self._family_of:
                self._block_of[key] = block
                self._key_of[block] = key
                self._family_of[block] = family
                if family is not None:
                    family.n_blocks += 1
        if family is not None and not family.n_blocks:
            del self._families[family.first_key]

    def _name_all(self) -> None:
        for family in list(self._unnamed.values()):
            self._name(family)

    def _name(self, family: _Family) -> None:
        """Work the keys of its blocks out; from now on each is put by its key."""
        chain, family.chain = family.chain, None
        if chain is not None:
            del self._unnamed[family.first_key]
            for block, place in family.places.items():
                key = chain.key(place)
                self._block_of[key] = block
                self._key_of[block] = key
            family.places = {}

    def forget(self, blocks: Iterable[int]) -> None:
        """The content of these blocks is lost."""
        for block in blocks:
            family = self._family_of.pop(block)
            if family is None or family.chain is None:
                del self._block_of[self._key_of.pop(block)]
            else:
                del family.places[block]
            if family is not None:
                family.n_blocks -= 1
                if not family.n_blocks:
                    del self._families[family.first_key]
                    self._unnamed.pop(family.first_key, None)
