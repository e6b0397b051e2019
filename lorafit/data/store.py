"""Tokenised rows on disk, in flat files that are mapped into memory and shared by all ranks.

A store is a directory:

| file | holds |
|---|---|
| `ids.bin` | int32, the tokens of all rows one after the other |
| `supervised.bin` | bool, whether each token is trained |
| `weights.bin` | float32, factor on each token's loss; only where some factor is not 1 |
| `rows.bin` | a record of `ROW` for each row |
| `store.json` | what it was made from, and the fingerprint of all the above |
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lorafit.data.rows import Place
from lorafit.data.tokens import Tokens
from lorafit.run_dir import write_json

ROW = np.dtype([
    ("end", "<i8"),         # where its tokens end in ids.bin; they begin where the row before ends
    ("number", "<i8"),      # line or row of its file, from 1
    ("digest", "<u8"),      # of its text but for case and white space
    ("supervised", "<i4"),  # tokens that carry a loss
    ("file", "<u4"),        # index into `files`
    ("flags", "<u2"),       # what data/checks.py found
    ("script", "u1"),       # index into data/scripts.py: SCRIPTS
])


@dataclass(frozen=True)
class Facts:
    """What a store was made from.

    rows_not_wanted: answers judged unwanted, which are not trained. rows_unusable: rows that could
    not be read or rendered; `unusable` holds what is wrong with the first of them, and where.
    """

    format: str
    format_reason: str
    rows_read: int
    rows_not_wanted: int = 0
    rows_unusable: int = 0
    unusable: list[list[str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RowNotes:
    """What was noticed about one row, as data/checks.py codes it."""

    digest: int
    flags: int
    script: int


@dataclass(frozen=True)
class PackedRows:
    """Rows as a store holds them: a few arrays, which travel fast between processes.

    ids, supervised, weights: tokens of all rows. rows: (rows,) of ROW, with `end` counted from the
    first of them and `file` an index into `files`: names, and whether rows are numbered by line.
    """

    ids: np.ndarray
    supervised: np.ndarray
    weights: np.ndarray | None
    rows: np.ndarray
    files: tuple[tuple[str, bool], ...]

    def __len__(self) -> int:
        return len(self.rows)


def pack(tokens: Sequence[Tokens], places: Sequence[Place],
         notes: Sequence[RowNotes]) -> PackedRows:
    """Rows, each with its place and what was noticed about it, as arrays."""
    files: dict[tuple[str, bool], int] = {}
    rows = np.zeros(len(tokens), dtype=ROW)
    rows["end"] = np.cumsum([len(row) for row in tokens])
    rows["supervised"] = [row.supervised_tokens for row in tokens]
    rows["number"] = [place.number for place in places]
    rows["file"] = [
        files.setdefault((place.file, place.is_line), len(files)) for place in places
    ]
    for name in ("digest", "flags", "script"):
        rows[name] = [getattr(note, name) for note in notes]
    weights = None
    if any(row.weights is not None for row in tokens):
        weights = np.concatenate([np.ones(len(row), np.float32) if row.weights is None
                                  else row.weights for row in tokens])
    ids = [row.ids for row in tokens] or [np.zeros(0, np.int32)]
    supervised = [row.supervised for row in tokens] or [np.zeros(0, np.bool_)]
    return PackedRows(np.concatenate(ids), np.concatenate(supervised), weights, rows, tuple(files))


class StoreWriter:
    """Appends rows of some files to a store in constant memory. `close` makes it complete."""

    def __init__(self, directory: Path, files: Sequence[str]) -> None:
        self.directory = directory
        self.tokens = 0
        self._files = {name: number for number, name in enumerate(files)}
        self._by_row: set[str] = set()  # files whose rows are numbered by row, not by line
        self._ids = _new(directory / "ids.bin")
        self._supervised = _new(directory / "supervised.bin")
        self._rows = _new(directory / "rows.bin")
        self._weights: BinaryIO | None = None

    def append(self, packed: PackedRows) -> None:
        rows = packed.rows.copy()
        rows["end"] += self.tokens
        known = np.array([self._files[name] for name, _ in packed.files], dtype=np.uint32)
        if len(rows):
            rows["file"] = known[rows["file"]]
        self._by_row.update(name for name, is_line in packed.files if not is_line)
        self._write_weights(packed.weights, len(packed.ids))
        self._ids.write(packed.ids.astype("<i4", copy=False).tobytes())
        self._supervised.write(packed.supervised.tobytes())
        self._rows.write(rows.tobytes())
        self.tokens += len(packed.ids)

    def close(self, facts: Facts) -> None:
        for file in (self._ids, self._supervised, self._rows, self._weights):
            if file is not None:
                file.close()
        write_json(self.directory / "store.json", {
            "facts": asdict(facts), "files": list(self._files),
            "by_row": sorted(self._files[name] for name in self._by_row),
            "fingerprint": _fingerprint(self.directory),
            "rows": _digest(self.directory / "rows.bin"),
        })

    def _write_weights(self, weights: np.ndarray | None, tokens: int) -> None:
        """Weights of some tokens, after 1 for every token before the first that had one."""
        if self._weights is None and weights is None:
            return
        if self._weights is None:
            self._weights = _new(self.directory / "weights.bin")
            self._weights.write(np.ones(self.tokens, dtype="<f4").tobytes())
        here = np.ones(tokens, np.float32) if weights is None else weights
        self._weights.write(here.astype("<f4", copy=False).tobytes())


class TokenStore:
    """A store opened for reading: row i as Tokens, where it came from, and columns over all rows.

    `files`: what the same files are called now, where that differs from then.
    """

    def __init__(self, directory: Path, files: Sequence[str] | None = None) -> None:
        stored = json.loads((directory / "store.json").read_text(encoding="utf-8"))
        self.fingerprint: str = stored["fingerprint"]
        self._rows_digest: str = stored["rows"]
        self.files = list(files or stored["files"])
        self.facts = _renamed(Facts(**stored["facts"]), stored["files"], self.files)
        self._by_row = set(stored["by_row"])
        self.directory = directory
        self.rows = _map(directory / "rows.bin", ROW)
        self._ids = _map(directory / "ids.bin", "<i4")
        self._supervised = _map(directory / "supervised.bin", "?")
        weights = directory / "weights.bin"
        self._weights = _map(weights, "<f4") if weights.exists() else None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, shape (rows,)."""
        return np.diff(self.rows["end"], prepend=0)

    def tokens(self, row: int) -> Tokens:
        start = int(self.rows["end"][row - 1]) if row else 0
        end = int(self.rows["end"][row])
        weights = None if self._weights is None else np.array(self._weights[start:end])
        supervised = np.array(self._supervised[start:end])
        return Tokens(np.array(self._ids[start:end]), supervised, weights)

    def place(self, row: int) -> Place:
        file = int(self.rows["file"][row])
        return Place(self.files[file], int(self.rows["number"][row]), file not in self._by_row)

    def is_intact(self) -> bool:
        """Whether the files still hold what was written."""
        return (_fingerprint(self.directory) == self.fingerprint
                and _digest(self.directory / "rows.bin") == self._rows_digest)


def _renamed(facts: Facts, old: Sequence[str], new: Sequence[str]) -> Facts:
    """The facts with the places of unusable rows in the files' new names."""
    names = dict(zip(old, new, strict=True))
    unusable = []
    for where, what in facts.unusable:
        place = re.fullmatch(r"(.*)((?::| row )\d+)", where, re.DOTALL)
        if place is not None:
            where = names.get(place[1], place[1]) + place[2]
        unusable.append([where, what])
    return replace(facts, unusable=unusable)


def _fingerprint(directory: Path) -> str:
    """SHA-256 of tokens, masks, weights and row ends: equal exactly when a model sees the same."""
    digest = hashlib.sha256(_map(directory / "rows.bin", ROW)["end"].tobytes())
    for name in ("ids.bin", "supervised.bin", "weights.bin"):
        digest.update((_digest(directory / name) if (directory / name).exists() else "").encode())
    return digest.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _new(path: Path) -> BinaryIO:
    return path.open("wb", buffering=1 << 20)


def _map(path: Path, dtype: Any) -> np.ndarray:
    if path.stat().st_size == 0:  # nothing cannot be mapped
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")
