"""Safetensors files without torch: names and shapes, and whether every number is finite.

A number that is not finite has all bits of its exponent set, whatever the format, so bytes are
looked at in blocks and nothing is converted.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Of each format: an unsigned type as wide, and the bits that all are 1 in a number that is not
# finite. F8_E4M3 has no infinity: only its NaN, which is all ones but the sign.
_EXPONENTS: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F64": (np.uint64, 0x7FF0000000000000), "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80),
    "F8_E5M2": (np.uint8, 0x7C), "F8_E4M3": (np.uint8, 0x7F),
}
_BLOCK_BYTES = 4 << 20


class Broken(Exception):
    """A file that is no safetensors file; says why."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. first_byte and size_bytes: where its numbers are."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    first_byte: int
    size_bytes: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


def stored_tensors(file: Path) -> dict[str, Stored]:
    """Every tensor of a file by its name. Broken unless the library reads the file's header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "numpy"):  # checks sizes, offsets and shapes against each other
            pass
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header: dict[str, Any] = json.loads(opened.read(length))
    except FileNotFoundError:
        raise Broken("is missing") from None
    except (SafetensorError, ValueError, OSError) as error:
        said = str(error).removeprefix("Error while deserializing header: ")
        raise Broken(f"cannot be read: {said}") from None
    return {name: Stored(name, entry["dtype"], tuple(entry["shape"]),
                         8 + length + entry["data_offsets"][0],
                         entry["data_offsets"][1] - entry["data_offsets"][0])
            for name, entry in header.items() if name != "__metadata__"}


def not_finite(file: Path, tensors: dict[str, Stored]) -> list[str]:
    """Names of tensors that hold NaN or infinity."""
    found = []
    with file.open("rb") as opened:
        for tensor in sorted(tensors.values(), key=lambda each: each.first_byte):
            if tensor.dtype not in _EXPONENTS:
                continue
            kind, ones = _EXPONENTS[tensor.dtype]
            opened.seek(tensor.first_byte)
            left = tensor.size_bytes
            while left > 0:
                block = opened.read(min(left, _BLOCK_BYTES))
                if not block:
                    raise Broken(f"ends within {tensor.name}")
                left -= len(block)
                numbers = np.frombuffer(block, dtype=kind)
                if bool(((numbers & kind(ones)) == kind(ones)).any()):
                    found.append(tensor.name)
                    break
    return found


def scalars(file: Path, tensors: dict[str, Stored]) -> dict[str, float]:
    """Values of tensors that hold a single float32."""
    found = {}
    with file.open("rb") as opened:
        for name, tensor in tensors.items():
            if tensor.dtype == "F32" and tensor.numbers == 1:
                opened.seek(tensor.first_byte)
                found[name] = float(np.frombuffer(opened.read(4), dtype="<f4")[0])
    return found
