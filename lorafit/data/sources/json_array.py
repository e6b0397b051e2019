"""JSON: a list of objects, or an object with one list in it, decoded element by element.

Only a window of the text is held, which grows until it holds the next element, so a list of many
gigabytes is read in the memory of its longest element.
"""

import codecs
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorafit.data.sources import json_lines
from lorafit.data.sources.blocks import MAX_LINE_BYTES, Blocks, Malformed, gather, json_kind
from lorafit.data.sources.compression import BUFFER_BYTES, open_text
from lorafit.data.sources.json_values import NotJson, decode_at, skip_whitespace
from lorafit.data.sources.lines import too_long
from lorafit.errors import UserError

REMEDY = "the file must hold a list of objects"
# A file that does not begin with its list is decoded as a whole up to here (in characters); above,
# its beginning has to say what it is.
_WHOLE = 8 << 20
_OBJECT_WITH_LIST = re.compile(r'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\[')
# An error this near to the end of the window (a literal, an escape) may be the window's end.
_CUT = 16


def read(path: Path, block_rows: int, skip_rows: int) -> Blocks:
    file = str(path)
    with open_text(path) as stream:
        window = _Window(stream, file)
        elements = _elements(window) if window.peek() == "[" else _other(window)
        if elements is not None:
            return (yield from gather(elements, "values", file, block_rows, skip_rows))
    return (yield from json_lines.read(path, block_rows, skip_rows))


def _other(window: "_Window") -> Iterator[tuple[int, Any, int]] | None:
    """Elements of a file that does not begin with a list; None when it holds JSON lines."""
    window.grow_to(_WHOLE)
    if window.ended:
        return _whole(window)
    first_line, line_break, _ = window.text[window.at :].partition("\n")
    if line_break and isinstance(json_lines.value_of(first_line.encode("utf-8")), dict):
        return None
    wrapped = _OBJECT_WITH_LIST.match(window.text, window.at)
    if wrapped is None:
        raise UserError("neither a list nor JSON lines", window.where(window.at), REMEDY)
    window.at = wrapped.end() - 1
    return _elements(window, wrapped=True)


def _whole(window: "_Window") -> Iterator[tuple[int, Any, int]] | None:
    """Elements of a text that the window holds to its end."""
    text = window.text
    if not window.peek():
        return iter(())
    try:
        value, end = decode_at(text, window.at)
    except NotJson as error:
        raise window.error(error) from None
    after = skip_whitespace(text, end)
    if after < len(text):  # several values: JSON lines under another name
        if "\n" in text[window.at : end]:
            raise UserError("not JSON: Extra data", window.where(after),
                            "put the objects into one list, or each on one line")
        return None
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(value) == 1 and lists else [value]
    elif isinstance(value, Malformed):
        value = [value]
    else:
        raise UserError(f"a JSON {json_kind(value)}, not a list of objects", window.file, REMEDY)
    return ((number, item, 0) for number, item in enumerate(value, 1))


def _elements(window: "_Window", *, wrapped: bool = False) -> Iterator[tuple[int, Any, int]]:
    """Number, value and size of each element of the list that begins at the window's position."""
    number = 0
    window.at += 1
    mark = window.peek()
    while mark != "]":
        if number:
            window.expect(",")
            window.peek()
        value, characters = window.value()
        number += 1
        yield number, value, characters
        mark = window.peek()
    window.expect("]")
    if wrapped:
        window.expect("}")
    if window.peek():
        raise UserError("not JSON: Extra data", window.where(window.at), REMEDY)


class _Window:
    """The part of a text that is in work.

    text: decoded so far and not dropped. at: position in it of what comes next. ended: nothing
    follows `text`.
    """

    def __init__(self, stream: io.BufferedReader, file: str) -> None:
        self.file = file
        self.text = ""
        self.at = 0
        self.ended = False
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._line = 1  # of the first character of `text`

    def where(self, position: int) -> str:
        return f"{self.file}:{self._line + self.text.count(chr(10), 0, position)}"

    def error(self, error: NotJson) -> UserError:
        position = self.at if error.position is None else error.position
        return UserError(error.what, self.where(position), REMEDY)

    def peek(self) -> str:
        """The next character that is not white space, which becomes the position; or none."""
        while True:
            self.at = skip_whitespace(self.text, self.at)
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._grow()

    def expect(self, mark: str) -> None:
        """Pass over `mark`, which must come next."""
        found = self.peek()
        if found != mark:
            what = f"Expecting '{mark}'" if found else f"ends before '{mark}'"
            raise UserError(f"not JSON: {what}", self.where(self.at), REMEDY)
        self.at += 1

    def value(self) -> tuple[Any, int]:
        """The value at the position, and its length. UserError when there is none."""
        while True:
            try:
                value, end = decode_at(self.text, self.at)
            except NotJson as error:
                if self.ended or not self._may_be_cut(error):
                    raise self.error(error) from None
            else:
                if end < len(self.text) or self.ended:  # else a number may go on
                    length = end - self.at
                    self.at = end
                    return value, length
            self._grow()

    def grow_to(self, characters: int) -> None:
        while len(self.text) < characters and not self.ended:
            self._grow()

    def _may_be_cut(self, error: NotJson) -> bool:
        """Whether the error may come from the end of the window, not from the text."""
        return error.position is not None and (
            error.position >= len(self.text) - _CUT or "Unterminated string" in error.what)

    def _grow(self) -> None:
        """Drop what was used and read as much again as is held."""
        self._line += self.text.count("\n", 0, self.at)
        self.text = self.text[self.at :]
        self.at = 0
        if len(self.text) > MAX_LINE_BYTES:
            raise too_long("JSON value", self.where(0))
        data = self._stream.read(max(BUFFER_BYTES, len(self.text)))
        self.ended = not data
        try:
            self.text += self._decoder.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            line = self._line + self.text.count("\n") + error.object[: error.start].count(b"\n")
            raise UserError(f"not UTF-8 text ({error.reason})", f"{self.file}:{line}",
                            "convert the file to UTF-8") from None
