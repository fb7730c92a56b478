"""Hash chains: equal keys if and only if everything before the end of the block is equal."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from penstock.cache.prefix import KEY_BYTES, KeyChain, PrefixIndex, root_key

BLOCK_TOKENS = 4

# Few different tokens and salts, so that equal ones happen; lengths around 0, 1 and multiples of the block.
salts = st.sampled_from(["", "a", "b", "ab", "ü"])
token_lists = st.lists(st.integers(0, 2) | st.integers(-(2**31), 2**31 - 1), max_size=3 * BLOCK_TOKENS + 1)


def keys_of(tokens, salt="", extras=(), block_tokens=BLOCK_TOKENS):
    chain = KeyChain(root_key(salt, extras), block_tokens, array("i", tokens))
    return [chain.key(k) for k in range(chain.full_blocks)]


@settings(deadline=None)
@given(a=token_lists, b=token_lists, salt_a=salts, salt_b=salts, shared=st.integers(0, 13))
def test_keys_are_equal_just_where_all_tokens_before_and_the_salt_are(a, b, salt_a, salt_b, shared):
    b = a[:shared] + b
    for k, (key_a, key_b) in enumerate(zip(keys_of(a, salt_a), keys_of(b, salt_b), strict=False)):
        stop = (k + 1) * BLOCK_TOKENS
        assert (key_a == key_b) == (salt_a == salt_b and a[:stop] == b[:stop])


@settings(deadline=None)
@given(data=st.data(), tokens=st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_another_token_changes_every_key_from_its_block_on(data, tokens):
    at = data.draw(st.integers(0, len(tokens) - 1))
    changed = [*tokens]
    changed[at] += 1
    before, after = keys_of(tokens), keys_of(changed)
    first = at // BLOCK_TOKENS
    assert before[:first] == after[:first]
    assert not set(before[first:]) & set(after)


@settings(deadline=None)
@given(tokens=token_lists, salt=salts)
def test_all_keys_of_a_chain_differ_and_have_one_size(tokens, salt):
    keys = keys_of(tokens, salt)
    assert len(set(keys)) == len(keys) == len(tokens) // BLOCK_TOKENS
    assert {len(key) for key in keys} <= {KEY_BYTES}


@settings(deadline=None)
@given(a=st.lists(salts, max_size=3), b=st.lists(salts, max_size=3))
def test_salt_and_extras_are_not_run_together(a, b):
    assert (root_key("", a) == root_key("", b)) == (a == b)


@settings(deadline=None)
@given(tokens=token_lists, looks=st.lists(st.integers(0, 4), max_size=6))
def test_keys_do_not_depend_on_when_they_are_asked_for(tokens, looks):
    growing = array("i")
    chain = KeyChain(root_key(""), BLOCK_TOKENS, growing)
    for token, look in zip(tokens, looks + [0] * len(tokens), strict=False):
        growing.append(token)
        if look < chain.full_blocks:
            chain.key(look)
    assert [chain.key(k) for k in range(chain.full_blocks)] == keys_of(tokens)


def test_a_block_that_is_not_full_has_no_key():
    chain = KeyChain(root_key(""), BLOCK_TOKENS, array("i", [1, 2, 3]))
    with pytest.raises(AssertionError, match="block 0 is not full: 3 tokens known"):
        chain.key(0)


def test_the_first_block_with_a_content_stays_the_known_one():
    index = PrefixIndex()
    index.put(b"key", 1)
    index.put(b"key", 2)
    assert index.find(b"key") == 1
    assert index.knows(1)
    assert not index.knows(2)
    index.forget([1])
    assert index.find(b"key") is None
    assert len(index) == 0


class Named:
    """The index as it would be if every block had its key at once: the oracle."""

    def __init__(self) -> None:
        self.block_of: dict[bytes, int] = {}
        self.key_of: dict[int, bytes] = {}

    def put(self, key, block):
        if key not in self.block_of and block not in self.key_of:
            self.block_of[key], self.key_of[block] = block, key

    def forget(self, blocks):
        for block in blocks:
            del self.block_of[self.key_of.pop(block)]


BLOCKS, CHAINS = range(12), range(4)


class LateNames(RuleBasedStateMachine):
    """Keys are worked out late; nobody can tell."""

    @initialize(begins=st.lists(st.integers(0, 1), min_size=len(CHAINS), max_size=len(CHAINS)))
    def make(self, begins):
        """Chains of 4 blocks that share nothing, or a beginning."""
        tokens = [[begin] * BLOCK_TOKENS * (1 + at % 2) + [at] * 3 * BLOCK_TOKENS for at, begin in enumerate(begins)]
        self.chains = [KeyChain(root_key(""), BLOCK_TOKENS, array("i", one[: 4 * BLOCK_TOKENS])) for one in tokens]
        self.keys = [keys_of(one[: 4 * BLOCK_TOKENS]) for one in tokens]
        self.index, self.oracle = PrefixIndex(), Named()

    @rule(chain=st.sampled_from(CHAINS), start=st.integers(0, 3), blocks=st.permutations(BLOCKS), n=st.integers(1, 4))
    def note(self, chain, start, blocks, n):
        blocks = blocks[: min(n, 4 - start)]
        self.index.note(self.chains[chain], start, blocks)
        for key, block in zip(self.keys[chain][start:], blocks, strict=False):
            self.oracle.put(key, block)

    @rule(chain=st.sampled_from(CHAINS), number=st.integers(0, 3), block=st.sampled_from(BLOCKS))
    def put(self, chain, number, block):
        self.index.put(self.keys[chain][number], block)
        self.oracle.put(self.keys[chain][number], block)

    @rule(data=st.data())
    def forget(self, data):
        known = sorted(self.oracle.key_of)
        blocks = data.draw(st.lists(st.sampled_from(known), unique=True)) if known else []
        self.index.forget(blocks)
        self.oracle.forget(blocks)

    @rule(chain=st.sampled_from(CHAINS))
    def look_along(self, chain):
        found = self.index.of(self.chains[chain])
        assert [found.get(key) for key in self.keys[chain]] == list(map(self.oracle.block_of.get, self.keys[chain]))

    @rule(chain=st.sampled_from(CHAINS), number=st.integers(0, 3))
    def look(self, chain, number):
        key = self.keys[chain][number]
        assert self.index.find(key) == self.oracle.block_of.get(key)
        assert self.index.has(key) == (key in self.oracle.block_of)

    @rule(block=st.sampled_from(BLOCKS))
    def look_at_a_block(self, block):
        assert self.index.key_of(block) == self.oracle.key_of.get(block)

    @invariant()
    def the_same_blocks_are_known(self):
        assert [self.index.knows(block) for block in BLOCKS] == [block in self.oracle.key_of for block in BLOCKS]
        assert len(self.index) == len(self.oracle.key_of)


LateNames.TestCase.settings = settings(max_examples=200, stateful_step_count=20, deadline=None)
TestLateNames = LateNames.TestCase


def test_what_no_other_prompt_begins_like_is_never_hashed():
    index = PrefixIndex()
    chains = [KeyChain(root_key(""), 1, array("i", [first, *range(99)])) for first in range(100, 103)]
    for at, chain in enumerate(chains):
        assert not index.of(chain).keys() & {chain.key(0)}
        index.note(chain, 0, range(100 * at, 100 * at + 100))
    index.forget(range(50))
    assert [len(chain._keys) for chain in chains] == [1, 1, 1]
    again = KeyChain(root_key(""), 1, array("i", [101, *range(99)]))
    assert [index.of(again)[again.key(k)] for k in range(100)] == [*range(100, 200)]
    assert [len(chain._keys) for chain in chains] == [1, 100, 1]


def test_an_index_remembers_nothing_of_what_it_forgot():
    index = PrefixIndex()
    chains = [KeyChain(root_key(""), 1, array("i", tokens)) for tokens in ([1, 2], [1, 3], [4, 5])]
    for at, chain in enumerate(chains):
        index.note(chain, 0, [2 * at, 2 * at + 1])
    index.forget([0, 1, 3, 4, 5])  # the second chain's first block has what that of the first has
    assert [*index._families, *index._unnamed, *index._block_of, *index._key_of] == []
