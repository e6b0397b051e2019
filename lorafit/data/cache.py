"""The cache of tokenised rows: keyed by content, written once, shared by every process.

A key is a digest of everything that a row of tokens depends on: the bytes of the data, the
tokenizer, the chat template, the settings that choose the mask, and the code that does the work.
Whatever changes, the key changes with it, so an entry can be missing but never be stale.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lorafit.cache_dir import REMEDY as _REMEDY
from lorafit.cache_dir import cache_directory
from lorafit.errors import MachineError
from lorafit.run_dir import committed_directory, write_json

ENTRY = "entry.json"  # what the command lists


@dataclass(frozen=True)
class Entry:
    """One cached data set. size_bytes on disk; used_s: when it was last opened, seconds since
    1970."""

    key: str
    path: Path
    source: str
    rows: int
    tokens: int
    size_bytes: int
    used_s: float


def key_of(parts: dict[str, Any]) -> str:
    """32 hexadecimal digits for `parts` (JSON values) and the code that turns rows into tokens."""
    parts = {**parts, "code": _code_digest(), "libraries": {
        name: metadata.version(name) for name in ("transformers", "tokenizers", "jinja2", "numpy")
    }}
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def tokenizer_digest(tokenizer: Any) -> str:
    """A digest of all that a fast tokenizer does to text."""
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def has_entry(key: str) -> bool:
    """Whether there is an entry of this key."""
    return (cache_directory() / "tokens" / key / ENTRY).exists()


@contextmanager
def locked(key: str) -> Iterator[Path]:
    """The path of an entry, held by one process at a time: the others wait for what it writes.

    Where no entry came of it, because the rows were refused, nothing stays.
    """
    from filelock import FileLock

    directory = cache_directory() / "tokens"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / f".{key}.lock")
        lock.acquire()
    except OSError as error:
        raise MachineError(f"{directory}: the cache cannot be written: {error.strerror or error}\n"
                           f"    {_REMEDY}") from None
    try:
        yield directory / key
    finally:
        if not (directory / key).exists():
            Path(lock.lock_file).unlink(missing_ok=True)  # whoever waits makes another
        lock.release()


def write_entry(path: Path, write: Callable[[Path], dict[str, Any]]) -> None:
    """Fill an entry, all or nothing; `write` returns what the command lists of it."""
    _remove_leftovers(path)
    try:
        with committed_directory(path, replace=True) as partial:
            facts = write(partial)
            write_json(partial / ENTRY, facts)
    except MachineError as error:
        if isinstance(error.__cause__, OSError):  # the disk's doing
            raise MachineError(f"{error}\n    {_REMEDY}") from None
        raise


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed had written of other entries than `path`."""
    from filelock import FileLock, Timeout

    for partial in path.parent.glob(".*.partial"):
        if partial.name == f".{path.name}.partial":
            continue
        lock = FileLock(partial.with_suffix(".lock"))
        try:
            with lock.acquire(timeout=0):  # else somebody is at it
                shutil.rmtree(partial)
        except (Timeout, OSError):
            continue


def mark_used(path: Path) -> None:
    try:
        os.utime(path / ENTRY)
    except OSError:  # somebody else's cache may be read without being written
        return


def entries() -> list[Entry]:
    """Everything in the cache, the most recently used first."""
    found = []
    for file in (cache_directory() / "tokens").glob(f"*/{ENTRY}"):
        if file.parent.name.startswith("."):
            continue
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            listed = facts["source"], facts["rows"], facts["tokens"]
        except (ValueError, KeyError, TypeError):  # the rows are checked when opened
            listed = "(damaged)", 0, 0
        size = sum(part.stat().st_size for part in file.parent.iterdir())
        found.append(Entry(file.parent.name, file.parent, *listed, size, file.stat().st_mtime))
    return sorted(found, key=lambda entry: -entry.used_s)


def delete(chosen: list[Entry]) -> None:
    """Remove entries; a run that has one open keeps what it has mapped."""
    for entry in chosen:
        shutil.rmtree(entry.path)
        (entry.path.parent / f".{entry.key}.lock").unlink(missing_ok=True)


def unused_for(days: float) -> list[Entry]:
    limit = time.time() - days * 86400
    return [entry for entry in entries() if entry.used_s < limit]


def _code_digest() -> str:
    """Of every source file of this room, so that no entry outlives the code that wrote it."""
    digest = hashlib.sha256()
    room = Path(__file__).parent
    for file in sorted((*room.rglob("*.py"), *room.rglob("*.jinja"))):
        digest.update(str(file.relative_to(room)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
