"""Lines of bytes, with a limit on what is held."""

import io
from collections.abc import Iterator

from lorafit.data.sources.blocks import MAX_LINE_BYTES, Malformed
from lorafit.errors import UserError


def filled_lines(stream: io.BufferedReader, file: str) -> Iterator[tuple[int, bytes, int]]:
    """Number, content and size of each line that is not blank. Only `\\n` ends a line.

    UserError at a line longer than MAX_LINE_BYTES, before more of it is read.
    """
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise too_long("line", f"{file}:{number}")
        if not line.isspace():
            yield number, line, len(line)


def too_long(what: str, where: str) -> UserError:
    return UserError(f"a {what} of more than {MAX_LINE_BYTES >> 20} MiB", where,
                     "check that each row ends with a line break; split a row that really is so "
                     "long")


def decode(line: bytes) -> str | Malformed:
    """The text of a line, or what is wrong with its characters."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return Malformed(f"not UTF-8 text ({error.reason})", "convert the file to UTF-8")
    return NUL if "\0" in text else text


NUL = Malformed("holds a NUL byte", "the file is damaged or is no text; write the row again")
