"""Which text of a rendered conversation was written for which message.

The conversation is rendered once more with marks that nobody could have guessed: the template's
loops write one where the turn of a message begins and ends, and every message carries one inside
its content. When the text without the marks is the text of the plain rendering, the marks changed
nothing, and where they stand is where each message stands.
"""

import re
import secrets
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from lorafit.data.chat.program import Program

Range = tuple[int, int]  # of characters: first, and one after the last

REASONING_KEYS = {"reasoning_content", "thinking", "reasoning"}
ATTEMPTS = 2  # at placing the marks, see place_of_mark

REASONING_END = "</think>"
_INSIDE_WORD = re.compile(r"(?<=\w)(?=\w)(?!\w*[>\]|])")  # but not of the name of a tag
_VISIBLE = re.compile(r"<[^<>\s]+>|(\S)")  # outside of tags
_NONCE = f"qz{secrets.token_hex(8)}k"
_MARK = re.compile(_NONCE + r"([tlgecr])(\d+)(?:x(\d+))?z")


@dataclass
class Trace:
    """Positions in the text `text`, which is the rendered text without marks.

    turns: for each message the stretches that were written while a loop stood at it. contents and
    reasonings: where the mark inside each message's content or reasoning came out. generated: what
    the template itself marks. tail: where the text after all turns begins; None without any turn.
    """

    text: str
    turns: dict[int, list[Range]] = field(default_factory=dict)
    contents: dict[int, list[int]] = field(default_factory=dict)
    reasonings: dict[int, list[int]] = field(default_factory=dict)
    generated: list[Range] = field(default_factory=list)
    tail: int | None = None


def trace(program: Program, values: dict[str, Any], attempt: int | None = 0) -> Trace:
    """Render `values` with marks. `attempt` chooses where in the contents they stand; None leaves
    the contents alone."""
    messages: list[dict[str, Any]] = values["messages"]
    if attempt is not None:
        messages = [_marked(message, i, attempt) for i, message in enumerate(messages)]
        values = {**values, "messages": messages}
    numbers = {id(message): i for i, message in enumerate(messages)}
    loops: set[int] = set()  # which have stood at a message

    def mark(kind: str, loop: int, item: Any) -> str:
        if kind == "turn":
            number = numbers.get(id(item))
            if number is not None:
                loops.add(loop)
                return f"{_NONCE}t{loop}x{number}z"
        elif kind != "left":
            return f"{_NONCE}{kind[0]}0z" if kind != "macro" else ""
        return f"{_NONCE}l{loop}z" if loop in loops else ""

    return _read(program.render(values, mark))


def _marked(message: dict[str, Any], i: int, attempt: int) -> dict[str, Any]:
    """A copy of message `i` with marks in what it says."""
    message = {**message, "content": _with_mark(message["content"], f"{_NONCE}c{i}z", attempt)}
    for key in REASONING_KEYS & message.keys():
        message[key] = _with_mark(message[key], f"{_NONCE}r{i}z", attempt)
    return message


def _with_mark(text: str, mark: str, attempt: int) -> str:
    at = place_of_mark(text, attempt)
    return text if at is None else text[:at] + mark + text[at:]


@lru_cache(64)  # it is asked again where the mark is looked for
def place_of_mark(text: str, attempt: int) -> int | None:
    """Where in `text` its mark stands: where it is least likely to be trimmed or looked at.

    Inside a word, the first after the middle of the answer. Where there is none, and on the second
    attempt, behind the first visible character outside of tags, or else at the end. None for blank
    text.
    """
    answer = text.rfind(REASONING_END) + len(REASONING_END) if REASONING_END in text else 0
    if answer and not text[answer:].strip():
        answer = 0
    first = len(text) - len(text[answer:].lstrip())
    last = len(text.rstrip())
    if first >= last:
        return None
    middle = (first + last) // 2
    if attempt == 0:
        inside = _INSIDE_WORD.search(text, middle, last) \
            or _INSIDE_WORD.search(text, first + 1, last)
        if inside is not None and inside.start() < last:
            return inside.start()
    visible = (match.end() for match in _VISIBLE.finditer(text, first, last) if match[1])
    return next(visible, last)


def _read(marked: str) -> Trace:
    """Take the marks out of `marked` and note where they stood."""
    pieces = _MARK.split(marked)
    texts = pieces[::4]
    found = Trace("".join(texts))
    open_turns: list[tuple[int, int, int]] = []  # loop, message, start
    open_generation: list[int] = []
    at = 0
    for text, kind, digits, message in zip(texts, pieces[1::4], pieces[2::4], pieces[3::4],
                                           strict=False):  # the last text has no mark behind it
        at += len(text)
        number = int(digits)
        if kind in "tl":
            if open_turns and number in [loop for loop, _, _ in open_turns]:
                _leave(number, open_turns, at, found)
            if kind == "t":
                open_turns.append((number, int(message), at))
        elif kind == "g":
            open_generation.append(at)
        elif kind == "e":
            start = open_generation.pop()
            if not open_generation and at > start:
                found.generated.append((start, at))
        else:
            where = found.contents if kind == "c" else found.reasonings
            where.setdefault(number, []).append(at)
    return found


def _leave(loop: int, open_turns: list[tuple[int, int, int]], at: int, found: Trace) -> None:
    """Close the turn of `loop`, and those inside it, at `at`."""
    left = None
    while left != loop:
        left, number, start = open_turns.pop()
        if at > start:
            found.turns.setdefault(number, []).append((start, at))
            found.tail = at
