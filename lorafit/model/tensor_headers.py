"""The header of a safetensors file, checked before a library maps the file.

The format: 8 bytes of length, that many bytes of JSON, and the tensors without gap or overlap
(https://github.com/huggingface/safetensors, "Format").
"""

import json
import math
from pathlib import Path
from typing import Any

from lorafit.errors import UserError

LARGEST_HEADER_BYTES = 100_000_000  # the limit of the format
_LENGTH_BYTES = 8
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}


class _Wrong(ValueError):
    """What is wrong with a header."""


def check_tensor_file(file: Path) -> dict[str, Any]:
    """The header of a file whose tensors all lie where it says.

    UserError, naming the file, when it is cut short, or its header is too long, no JSON object, or
    describes tensors beyond the end, within each other or of another size than their shape.
    """
    try:
        if not file.is_file():
            raise _Wrong("it is no regular file")
        size_bytes = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
            if size_bytes < _LENGTH_BYTES or length > size_bytes - _LENGTH_BYTES:
                raise _Wrong("it is cut short, or is no safetensors file: its header would be "
                             f"{length:,} bytes long, and the file has {size_bytes:,}")
            if length > LARGEST_HEADER_BYTES:
                raise _Wrong(f"its header is {length:,} bytes long, more than the format allows")
            header = json.loads(opened.read(length), object_pairs_hook=_without_duplicates)
        if not isinstance(header, dict):
            raise _Wrong("its header is no JSON object")
        _check_places(header, size_bytes - _LENGTH_BYTES - length)
    except RecursionError:
        raise UserError("is damaged: its header is nested too deeply", str(file),
                        "copy or download it again") from None
    except FileNotFoundError:
        raise UserError("is missing", str(file), "copy or download it again") from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", str(file),
                        "check the file and its permissions") from None
    except ValueError as error:
        what = str(error) if isinstance(error, _Wrong) else f"its header is no JSON ({error})"
        raise UserError(f"is damaged: {what}", str(file), "copy or download it again") from None
    return header


def _check_places(header: dict[str, Any], data_bytes: int) -> None:
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _Wrong("its metadata are no mapping of texts")
    places = sorted((*_place(name, entry), name) for name, entry in tensors.items())
    end = 0
    for first, last, name in places:
        if first != end:
            raise _Wrong(f"{name} does not begin where the tensor before it ends")
        end = last
    if end != data_bytes:
        raise _Wrong(f"its tensors take {end:,} bytes, and it has {data_bytes:,}")


def _place(name: str, entry: Any) -> tuple[int, int]:
    """Where a tensor's bytes begin and end."""
    shown = name if len(name) < 80 else f"{name[:77]}…"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Wrong(f"{shown} is not described by dtype, shape and data_offsets")
    offsets, shape, bits = entry["data_offsets"], entry["shape"], _BITS.get(str(entry["dtype"]))
    if bits is None:
        raise _Wrong(f"{shown} is of an unknown type")
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2
            and offsets[0] <= offsets[1]):
        raise _Wrong(f"{shown} has a shape or a place that is none")
    if math.prod(shape) * bits != 8 * (offsets[1] - offsets[0]):
        raise _Wrong(f"{shown} has another size than its shape")
    return offsets[0], offsets[1]


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and len(values) <= 64 and all(
        type(value) is int and 0 <= value < 1 << 63 for value in values)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Wrong("a name stands twice in its header")
    return found
