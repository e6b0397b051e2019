"""Parquet and Arrow tables, by record batches."""

import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorafit.data.sources.blocks import BLOCK_BYTES, Blocks, RawBlock
from lorafit.data.sources.compression import BUFFER_BYTES, endings, open_bytes
from lorafit.data.sources.packages import import_package
from lorafit.errors import UserError

_FILE_MARK = b"ARROW1\0\0"  # an Arrow file is this, a stream, and an index of the stream


def read_parquet(path: Path, block_rows: int, skip_rows: int) -> Blocks:
    """Row groups that are skipped as a whole are not read."""
    parquet = _import("pyarrow.parquet", path)
    # Otherwise whole row groups, and those to come, are read ahead.
    reading = {"pre_buffer": False, "buffer_size": BUFFER_BYTES}
    with (_readable(path, "Parquet"), _plain(path) as plain,
          parquet.ParquetFile(plain, **reading) as file):
        _check_names(file.schema_arrow.names, path)
        groups = list(range(file.metadata.num_row_groups))
        number = 1
        while groups and skip_rows >= (rows := file.metadata.row_group(groups[0]).num_rows):
            skip_rows -= rows
            number += rows
            del groups[0]
        batches = file.iter_batches(block_rows, row_groups=groups)
        return (yield from _blocks(batches, path, number, block_rows, skip_rows))


def read_arrow(path: Path, block_rows: int, skip_rows: int) -> Blocks:
    """An IPC file or an IPC stream. A plain one is mapped, so a batch may be larger than memory."""
    pyarrow, ipc = _import("pyarrow", path), _import("pyarrow.ipc", path)
    with _readable(path, "Arrow"), open_bytes(path) as stream:
        is_file = stream.peek(len(_FILE_MARK)).startswith(_FILE_MARK)
        _, compression = endings(path)
        if compression:
            if is_file:
                stream.read(len(_FILE_MARK))
            reader = ipc.open_stream(pyarrow.PythonFile(stream, mode="r"))
            batches = iter(reader)
        elif is_file:
            reader = ipc.open_file(pyarrow.memory_map(str(path)))
            batches = map(reader.get_batch, range(reader.num_record_batches))
        else:
            reader = ipc.open_stream(pyarrow.memory_map(str(path)))
            batches = iter(reader)
        _check_names(reader.schema.names, path)
        return (yield from _blocks(batches, path, 1, block_rows, skip_rows))


def _blocks(batches: Iterator[Any], path: Path, number: int, block_rows: int,
            skip_rows: int) -> Blocks:
    """Blocks of record batches, of which the first has row `number`."""
    for batch in batches:
        start = min(skip_rows, batch.num_rows)
        skip_rows -= start
        batch.validate()  # sizes; those of the texts and lists come with each part
        row_bytes = batch.get_total_buffer_size() // max(1, batch.num_rows) + 1
        step = max(1, min(block_rows, BLOCK_BYTES // row_bytes))
        while start < batch.num_rows:
            part = batch.slice(start, step)
            part.validate(full=True)  # offsets of a damaged file would be followed anywhere
            first = number + start
            yield RawBlock("values", str(path), range(first, first + part.num_rows),
                           part.to_pylist())
            start += step
        number += batch.num_rows
    return skip_rows


def _check_names(names: list[str], path: Path) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"a column name stands twice: {name}", str(path), "rename one of them")


@contextmanager
def _plain(path: Path) -> Generator[Path, None, None]:
    """The file itself, or its decompressed content in a temporary one: what stands in a Parquet
    file is found from its end, so a stream cannot be read."""
    if not endings(path)[1]:
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="lorafit-", suffix=".parquet") as file:
        with open_bytes(path) as stream:
            shutil.copyfileobj(stream, file, BUFFER_BYTES)
        file.flush()
        yield Path(file.name)


@contextmanager
def _readable(path: Path, kind: str) -> Generator[None, None, None]:
    """What pyarrow raises (ValueError, OSError and others of its own) as UserError."""
    pyarrow = _import("pyarrow", path)
    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"not readable as {kind}: {reason}", str(path),
                        "check that the file is complete") from None


def _import(name: str, path: Path) -> Any:
    return import_package(name, str(path), "convert the rows to .jsonl")
