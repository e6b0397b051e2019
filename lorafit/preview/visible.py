"""Text from somebody's file, made safe and honest to look at.

Characters that cannot be seen, or that change how others are shown (controls, escape sequences,
bidirectional marks, zero-width and unusual spaces), are written out as ⟨U+202E⟩: a row can neither
hide anything nor steer a terminal.
"""

import re
from collections.abc import Iterator

# Printable, as Python has it, but without a mark of their own; and the sign of a lost character.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0e\uffa0"
                    "\ufffd\U000e0100-\U000e01ef]")


def is_hidden(char: str) -> bool:
    """Whether a character has to be written out. Line feeds and tabs are shown otherwise."""
    return (not char.isprintable() and char not in "\n\t") or bool(_BLANK.match(char))


def split_hidden(text: str) -> Iterator[tuple[str, bool]]:
    """`text` in parts, each with whether it is one hidden character."""
    if text.isprintable() and not _BLANK.search(text):
        yield text, False
        return
    start = 0
    for i, char in enumerate(text):
        if is_hidden(char):
            if start < i:
                yield text[start:i], False
            yield char, True
            start = i + 1
    if start < len(text):
        yield text[start:], False


def written_out(char: str) -> str:
    return f"⟨U+{ord(char):04X}⟩"


def safe(text: str) -> str:
    """One line of `text` for a message or a table, hidden characters written out."""
    parts = (written_out(part) if hidden else part for part, hidden in split_hidden(text))
    return "".join(parts).replace("\n", "↵").replace("\t", "⇥")
