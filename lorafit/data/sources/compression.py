"""Files as streams of bytes, decompressed where their name says so."""

import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from lorafit.data.sources.packages import import_package
from lorafit.errors import UserError

BUFFER_BYTES = 1 << 20
# Small enough that little of what stands before a break is lost with it.
_PIECE_BYTES = 1 << 16

_MAGIC = {
    b"\x1f\x8b": ".gz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"\xfd7zXZ\0": ".xz",
}
_UNICODE_MARKS = {  # the longer one first: UTF-32 begins like UTF-16
    b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def endings(path: Path) -> tuple[str, str]:
    """Endings of the kind and of the compression in lower case, `(".jsonl", ".gz")`; or empty."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        return Path(path.stem).suffix.lower(), suffix
    return suffix, ""


def open_text(path: Path) -> io.BufferedReader:
    """The bytes of a text file after any UTF-8 mark. UserError when the encoding is another one.

    The stream raises UserError where the compressed file is broken.
    """
    stream = open_bytes(path)
    try:
        head = stream.peek(4)
        for mark, encoding in _UNICODE_MARKS.items():
            if head.startswith(mark):
                raise UserError(f"{encoding} text, not UTF-8 text", str(path),
                                f"convert the file to UTF-8: iconv -f {encoding} -t UTF-8")
    except UserError:
        stream.close()
        raise
    if head.startswith(_BYTE_ORDER_MARK):
        stream.read(len(_BYTE_ORDER_MARK))
    return stream


def open_bytes(path: Path) -> io.BufferedReader:
    """The decompressed bytes of a file. UserError when it is not what its ending says."""
    _, compression = endings(path)
    with path.open("rb") as file:
        head = file.read(8)
    found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")
    if not compression:
        if found:
            raise UserError(f"is compressed, which its name does not say ({found[1:]})", str(path),
                            f"name it {path.name}{found}")
        return io.BufferedReader(io.FileIO(path), BUFFER_BYTES)
    skippable = compression == ".zst" and head[1:4] == b"\x2a\x4d\x18"  # a frame before the data
    if head and found != compression and not skippable:
        raise UserError(
            f"is not compressed as its ending {compression} says", str(path),
            f"it looks like {found}: name it so" if found
            else f"name it {path.stem} if it is plain text, or fetch it again",
        )
    return io.BufferedReader(_Decompressed(path, COMPRESSIONS[compression]), BUFFER_BYTES)


class _Decompressed(io.RawIOBase):
    """Bytes of a compressed file. Bounded memory, whatever it unpacks to.

    Where the file is broken, first everything before that comes out, then UserError.
    """

    def __init__(self, path: Path, decompress: Callable[[Path], BinaryIO]) -> None:
        self._path = path
        self._source = decompress(path)
        self._bytes = 0
        self._failure: UserError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._failure:
            raise self._failure
        filled = 0
        while filled < len(buffer):
            try:
                piece = self._source.read(min(_PIECE_BYTES, len(buffer) - filled))
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                self._failure = self._broken(error)
                if not filled:
                    raise self._failure from None
                break
            if not piece:
                break
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._bytes += len(piece)
        return filled

    def _broken(self, error: Exception) -> UserError:
        if "too much memory" in str(error):  # zstd --long above 27
            return UserError("was compressed with a larger window than can be read",
                             str(self._path), "compress it again without --long or --ultra")
        reason = str(error).strip().rstrip(".") or type(error).__name__
        return UserError(f"is broken or cut off after {self._bytes:,} bytes of its decompressed "
                         f"content ({reason})", str(self._path), "fetch or compress it again")

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()


def _open_gzip(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb"))


def _open_xz(path: Path) -> BinaryIO:
    # An empty file holds no row; lzma would call it cut off.
    return cast(BinaryIO, lzma.open(path, "rb")) if path.stat().st_size else io.BytesIO()


def _open_zstd(path: Path) -> BinaryIO:
    pyarrow = import_package("pyarrow", str(path), "decompress it with zstd -d")
    return cast(BinaryIO, pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))


COMPRESSIONS: dict[str, Callable[[Path], BinaryIO]] = {
    ".gz": _open_gzip,
    ".zst": _open_zstd,
    ".xz": _open_xz,
}
