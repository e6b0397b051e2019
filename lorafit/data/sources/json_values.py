"""One JSON value out of a text, as Python's json reads it, with less tolerance for damage."""

import json
import re
from typing import Any

from lorafit.data.sources.blocks import Malformed

_WHITESPACE = re.compile(r"[ \t\n\r]*")


class NotJson(ValueError):
    """Why a text is no JSON value, and at which character where that is known."""

    def __init__(self, what: str, position: int | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.position = position


class _DuplicateKey(Exception):
    pass


def decode_at(text: str, start: int) -> tuple[Any, int]:
    """The value that begins at `start`, and the position after it.

    An object that has a key twice is Malformed: Python would keep the last one and say nothing.
    NaN and Infinity are floats. NotJson when there is no value.
    """
    try:
        try:
            return _STRICT.raw_decode(text, start)
        except _DuplicateKey as duplicate:
            _, end = _TOLERANT.raw_decode(text, start)
            return Malformed(f"the key {duplicate} stands twice in one object",
                             "remove or rename one of them"), end
    except json.JSONDecodeError as error:
        raise NotJson(f"not JSON: {error.msg}", error.pos) from None
    except RecursionError:
        raise NotJson("nested too deeply") from None
    except ValueError:
        raise NotJson("not JSON: a whole number has more digits than Python reads (4300)") from None


def skip_whitespace(text: str, start: int) -> int:
    """The position of the next character that is not white space, or the length of the text."""
    found = _WHITESPACE.match(text, start)
    assert found  # it matches nothing as well
    return found.end()


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    raise _DuplicateKey(repr(next(name for name in names if names.count(name) > 1)))


_STRICT = json.JSONDecoder(object_pairs_hook=_without_duplicates)
_TOLERANT = json.JSONDecoder()
