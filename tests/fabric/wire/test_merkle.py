import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.wire import merkle
from fabric.wire.hashing import keccak256

leaves = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=40)


@given(leaves, st.data())
def test_every_leaf_proves_itself_and_nothing_else(items, data):
    index = data.draw(st.integers(0, len(items) - 1))
    path = merkle.proof(items, index)
    root = merkle.root(items)
    assert merkle.verify(root, items[index], path)
    stranger = keccak256(items[index])
    assert not merkle.verify(root, stranger, path)


@given(leaves, st.data())
def test_changing_one_leaf_changes_the_root(items, data):
    index = data.draw(st.integers(0, len(items) - 1))
    other = [*items]
    other[index] = keccak256(items[index])
    assert merkle.root(other) != merkle.root(items)


def test_no_leaves_give_the_empty_root():
    assert merkle.root([]) == merkle.EMPTY_ROOT == bytes(32)


def test_an_inner_node_is_not_a_leaf():
    kind = merkle.tag("fabric.test.v1")
    a, b = merkle.leaf(kind, 1), merkle.leaf(kind, 2)
    joined = min(a, b) + max(a, b)
    assert merkle.leaf(joined[:32], joined[32:]) != merkle.root([a, b])


def test_leaves_of_two_kinds_never_meet():
    assert merkle.leaf(merkle.tag("a"), 1) != merkle.leaf(merkle.tag("b"), 1)


def test_keccak_is_the_evms_and_not_nist_sha3():
    assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"


def test_words_are_padded_as_the_abi_does():
    assert merkle.word(1) == bytes(31) + b"\1"
    assert merkle.word(b"\7" * 20) == bytes(12) + b"\7" * 20


@pytest.mark.parametrize("bad", [-1, 1 << 256, b"short", b"\0" * 33])
def test_what_is_not_a_word_is_refused(bad):
    with pytest.raises(ValueError):
        merkle.word(bad)


def test_a_proof_for_a_leaf_that_is_not_there_is_refused():
    with pytest.raises(IndexError, match="leaf 2 of a tree of 2"):
        merkle.proof([bytes(32), bytes(32)], 2)
