"""The address book: written and read back; anything else is refused with its name."""

import json
from dataclasses import replace

import pytest

from ledger.chain.book import AddressBook
from ledger.chain.errors import BadAddressBook

ADDRESS = "0x1a642f0E3c3aF545E7AcBD38b07251B3990914F1"
BOOK = AddressBook(1, 2, ADDRESS, ADDRESS, ADDRESS, ADDRESS, ADDRESS)


def _content(**changes):
    return json.dumps({name: getattr(BOOK, name) for name in BOOK.__slots__} | changes)


def test_what_is_written_is_read_back(tmp_path):
    BOOK.write(tmp_path / "book.json")
    assert AddressBook.read(tmp_path / "book.json") == BOOK
    assert replace(BOOK, settlement="0x1").address("Settlement") == "0x1"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        _content(extra=1),
        _content(bct=ADDRESS.lower()),
        _content(bct="0x12"),
        _content(bct=None),
        _content(chain_id="1"),
        _content(start_block=-1),
        _content(chain_id=True),
    ],
)
def test_anything_else_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "book.json"
    path.write_text(content, "utf-8")
    with pytest.raises(BadAddressBook, match=r"book.json"):
        AddressBook.read(path)


def test_a_missing_book_is_named(tmp_path):
    with pytest.raises(BadAddressBook, match=r"none.json"):
        AddressBook.read(tmp_path / "none.json")
