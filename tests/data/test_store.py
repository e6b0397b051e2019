"""Tokenised rows on disk: what goes in comes out, and damage does not go unnoticed."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lorafit.data.rows import Place
from lorafit.data.store import Facts, RowNotes, StoreWriter, TokenStore, pack
from lorafit.data.tokens import Tokens

FACTS = Facts("chat", "the rows have messages", 3, 0, 1, [["b.jsonl:4", "bad"]], ["a notice"])


@st.composite
def rows(draw: st.DrawFn) -> Tokens:
    length = draw(st.integers(1, 12))
    ids = draw(arrays.arrays(np.int32, length, elements=st.integers(0, 2**31 - 1)))
    supervised = draw(arrays.arrays(np.bool_, length))
    if not draw(st.booleans()):
        return Tokens(ids, supervised)
    weights = draw(arrays.arrays(np.float32, length, elements=st.floats(0, 4, width=32)))
    return Tokens(ids, supervised, weights)


def write(directory: Path, tokens: list[Tokens], block: int = 2) -> None:
    writer = StoreWriter(directory, ["a.jsonl", "b.parquet"])
    places = [Place("a.jsonl", i + 1) if i % 2 else Place("b.parquet", 10 * i + 1, False)
              for i in range(len(tokens))]
    notes = [RowNotes(2**64 - 1 - i, i % 8, i % 4) for i in range(len(tokens))]
    for start in range(0, len(tokens), block):
        end = start + block
        writer.append(pack(tokens[start:end], places[start:end], notes[start:end]))
    writer.close(FACTS)


@settings(max_examples=40, deadline=None)
@given(st.lists(rows(), max_size=9), st.integers(1, 4))
def test_rows_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[Tokens], block: int,
) -> None:
    directory = tmp_path_factory.mktemp("store")
    write(directory, tokens, block)
    store = TokenStore(directory)
    assert len(store) == len(tokens)
    assert store.facts == FACTS
    assert store.is_intact()
    assert store.lengths.tolist() == [len(row) for row in tokens]
    weighted = any(row.weights is not None for row in tokens)
    for i, row in enumerate(tokens):
        got = store.tokens(i)
        np.testing.assert_array_equal(got.ids, row.ids)
        np.testing.assert_array_equal(got.supervised, row.supervised)
        if weighted:
            wanted = np.ones(len(row), np.float32) if row.weights is None else row.weights
            np.testing.assert_array_equal(got.weights, wanted)
        else:
            assert got.weights is None
        assert store.rows["supervised"][i] == row.supervised[1:].sum()
        assert store.place(i) == (Place("a.jsonl", i + 1) if i % 2
                                  else Place("b.parquet", 10 * i + 1, False))
        assert store.rows["digest"][i] == 2**64 - 1 - i


def two_rows() -> list[Tokens]:
    return [Tokens(np.arange(5, dtype=np.int32), np.array([0, 0, 1, 1, 1], bool)),
            Tokens(np.arange(4, dtype=np.int32), np.array([0, 1, 0, 1], bool))]


def test_the_block_size_changes_nothing(tmp_path: Path) -> None:
    for block in (1, 2, 5):
        (tmp_path / str(block)).mkdir()
        write(tmp_path / str(block), two_rows() * 3, block)
    assert len({TokenStore(tmp_path / str(block)).fingerprint for block in (1, 2, 5)}) == 1


@pytest.mark.parametrize("name", ["ids.bin", "supervised.bin", "rows.bin"])
def test_one_flipped_bit_shows(tmp_path: Path, name: str) -> None:
    write(tmp_path, two_rows())
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    assert not TokenStore(tmp_path).is_intact()


def test_another_mask_or_token_is_another_fingerprint(tmp_path: Path) -> None:
    variants = [two_rows() for _ in range(3)]
    variants[1][0].ids[3] = 9
    variants[2][1].supervised[2] = True
    for i, tokens in enumerate(variants):
        (tmp_path / str(i)).mkdir()
        write(tmp_path / str(i), tokens)
    assert len({TokenStore(tmp_path / str(i)).fingerprint for i in range(3)}) == 3


def test_a_directory_may_have_more_files_than_16_bits_count(tmp_path: Path) -> None:
    names = [f"{n}.json" for n in range(70_000)]
    writer = StoreWriter(tmp_path, names)
    writer.append(pack(two_rows()[:1], [Place(names[-1], 1)], [RowNotes(0, 0, 0)]))
    writer.close(FACTS)
    assert TokenStore(tmp_path).place(0) == Place("69999.json", 1)


def test_files_may_have_moved(tmp_path: Path) -> None:
    write(tmp_path, two_rows())
    store = TokenStore(tmp_path, ["/new/a.jsonl", "/new/b.parquet"])
    assert [str(store.place(i)) for i in (0, 1)] == ["/new/b.parquet row 1", "/new/a.jsonl:2"]
