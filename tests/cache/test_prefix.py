"""Hash chains: equal keys if and only if everything before the end of the block is equal."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    index.forget(1)
    assert index.find(b"key") is None
    assert len(index) == 0
