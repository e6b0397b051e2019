"""Safetensors files, read and written a piece of a tensor at a time.

The library maps whole files into memory on reading and wants all tensors of a file at once on
writing, so a shard would have to fit. Here a tensor is read in rows, and written in rows behind a
header whose room was set aside. The format (https://huggingface.co/docs/safetensors): eight bytes
with the length of the header, the header in JSON (it may end in spaces), the tensors' bytes without
gaps.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from lorafit.errors import UserError
from lorafit.model.tensor_headers import check_tensor_file
from lorafit.model.weight_files import weight_shards

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_LENGTH_BYTES = 8
_ENTRY_BYTES = 200  # of a header's entry beside the name: dtype, shape, two offsets
ALIGNMENT_BYTES = 8
BLOCK_NUMBERS = 1 << 20  # of a tensor that are in memory together: 8 MiB in float64


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. offset_bytes: where its first byte is, from the start of the file."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset_bytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first dimension."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, first: int = 0, count: int | None = None) -> Tensor:
        """The tensor, or `count` indices of its first dimension from `first` on."""
        shape, skipped = self.shape, 0
        if count is not None:
            shape, skipped = (count, *self.shape[1:]), first * self.row_bytes
        data = torch.empty(math.prod(shape) * self.dtype.itemsize, dtype=torch.uint8)
        if data.numel():
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.offset_bytes + skipped)
                _fill(file, data.numpy().data, self)
        return data.view(self.dtype).reshape(shape)


def _fill(file: Any, wanted: memoryview, of: Stored) -> None:
    while wanted.nbytes:
        got = file.readinto(wanted)
        if not got:
            raise UserError(f"is damaged: it ends within {of.name}", str(of.file), "copy it again")
        wanted = wanted[got:]


def stored_tensors(file: Path) -> dict[str, Stored]:
    """The tensors of a file, in their order in it. UserError when it is missing or damaged."""
    header = check_tensor_file(file)
    with file.open("rb") as opened:
        start = _LENGTH_BYTES + int.from_bytes(opened.read(_LENGTH_BYTES), "little")
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            if entry["dtype"] not in DTYPES:
                raise UserError(f"is damaged: {name} is of the unknown type {entry['dtype']}",
                                str(file), "copy it again")
            found[name] = Stored(name, file, DTYPES[entry["dtype"]], tuple(entry["shape"]),
                                 start + entry["data_offsets"][0])
    return dict(sorted(found.items(), key=lambda item: item[1].offset_bytes))


def stored_in(folder: Path) -> dict[str, Stored]:
    """The tensors of a model's files."""
    return {name: tensor for file in dict.fromkeys(weight_shards(folder).values())
            for name, tensor in stored_tensors(file).items()}


def row_blocks(shape: tuple[int, ...], rows: int = 0) -> Iterator[tuple[int, int]]:
    """First row and number of rows of blocks to read: `rows` at a time, as many as BLOCK_NUMBERS
    allows if 0. A single number is one block of one."""
    first, inner = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    rows = rows or max(1, BLOCK_NUMBERS // max(1, inner))
    for start in range(0, first, rows):
        yield start, min(rows, first - start)


def header_room_bytes(names: Iterable[str]) -> int:
    """Enough for a header with tensors of these names."""
    needed = 64 + sum(len(json.dumps(name)) + _ENTRY_BYTES for name in names)
    return -(-needed // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class TensorWriter:
    """Writes a file tensor by tensor. Its header is written last, into room set aside for it.

    A tensor whose size is no multiple of eight bytes would put those behind it at odd places, where
    some readers are slow; such ones are small and are held back to the end.
    """

    def __init__(self, path: Path, room_bytes: int) -> None:
        self._file = path.open("wb")
        self._room_bytes = room_bytes
        self._header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._position = 0
        self._held_back: list[tuple[str, Tensor]] = []
        self._file.seek(_LENGTH_BYTES + room_bytes)

    def add(self, name: str, dtype: torch.dtype, shape: tuple[int, ...],
            blocks: Iterable[Tensor]) -> None:
        """Write a tensor from blocks of its rows, in order."""
        size_bytes = math.prod(shape) * dtype.itemsize
        if size_bytes % ALIGNMENT_BYTES:
            self._held_back.append((name, torch.cat([block.reshape(-1) for block in blocks])
                                    .reshape(shape)))
            return
        self._write(name, dtype, shape, blocks)

    def _write(self, name: str, dtype: torch.dtype, shape: tuple[int, ...],
               blocks: Iterable[Tensor]) -> None:
        first = self._position
        for block in blocks:
            if block.dtype != dtype:
                raise TypeError(f"{name}: {block.dtype} in place of {dtype}")
            data = block.contiguous().reshape(-1).view(torch.uint8)
            self._file.write(data.numpy().data)
            self._position += data.numel()
        if self._position - first != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name}: its blocks do not make a tensor of shape {shape}")
        self._header[name] = {"dtype": _CODES[dtype], "shape": list(shape),
                              "data_offsets": [first, self._position]}

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            if kind is None:
                for name, tensor in sorted(self._held_back, key=lambda item: -item[1].itemsize):
                    self._write(name, tensor.dtype, tuple(tensor.shape), [tensor])
                header = json.dumps(self._header, separators=(",", ":")).encode()
                if len(header) > self._room_bytes:
                    raise ValueError(f"a header of {len(header)} bytes has room for "
                                     f"{self._room_bytes}")
                self._file.seek(0)
                self._file.write(self._room_bytes.to_bytes(_LENGTH_BYTES, "little"))
                self._file.write(header.ljust(self._room_bytes))
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


@contextmanager
def written(path: Path, names: Iterable[str]) -> Iterator[TensorWriter]:
    """A writer of a file that holds tensors of at most these names."""
    with TensorWriter(path, header_room_bytes(names)) as writer:
        yield writer
