"""Characters that a wrong encoding left in a text.

UTF-8 that was read as Latin-1 or Windows-1252 turns é into Ã© and ’ into â€™: one to three
characters for what was one. Such a group is told from correct text by reading it back: its
characters, as bytes, are UTF-8 of something that makes sense where it stands. `MAÇÃ”` ends in a
group that reads back too (as Ô), and so does the French `été »`, with its no-break space (as a
Chinese character), so what is around a group decides with it.
"""

import re
from collections.abc import Iterator

# Windows-1252 gives printable characters to most of the bytes that Latin-1 leaves to controls.
_BYTE_OF = {bytes([byte]).decode("cp1252", "replace"): byte for byte in range(0x80, 0x100)}
_BYTE_OF.pop("\ufffd")
_BYTE_OF |= {chr(byte): byte for byte in range(0x80, 0x100)}

_CONTINUES = "".join(re.escape(char) for char, byte in _BYTE_OF.items() if byte < 0xC0)
_GROUPS = re.compile(f"[Â-ô][{_CONTINUES}][Â-ô{_CONTINUES}]*")
_UTF8 = re.compile(rb"(?:[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|"
                   rb"[\xf0-\xf4][\x80-\xbf]{3})+")

# Replacement and byte order marks, and controls but tab, line feed, form feed, carriage return.
_NEVER = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufeff\ufffd-\uffff]")
_NEVER_ASCII = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")

_CLOSES = "’”»…–—\xa0"  # what may follow a word or a letter in correct text
# Signs of three bytes that English text has: quotes, dashes, the euro, arrows, ticks. As Latin-1
# they begin with â, which ends no word of any language.
_SIGNS = range(0x2000, 0x2C00)


def misread(text: str) -> str | None:
    """The first part of `text` that a wrong encoding left there; None when all is well."""
    if text.isascii():
        found = _NEVER_ASCII.search(text)
        return found.group() if found else None
    if found := _NEVER.search(text):
        # A control is often the middle of a group, which says more than the control alone.
        return next(_read_back(text, found.start() - 3, found.end() + 3), found.group())
    return next(_read_back(text), None)


def _read_back(text: str, start: int = 0, end: int | None = None) -> Iterator[str]:
    """The groups between `start` and `end` that are UTF-8 read wrongly."""
    for group in _GROUPS.finditer(text, max(0, start), len(text) if end is None else end):
        raw = bytes(_BYTE_OF[char] for char in group.group())
        for match in _UTF8.finditer(raw):
            first, last = group.start() + match.start(), group.start() + match.end()
            try:
                meant = match.group().decode()
            except UnicodeDecodeError:  # the form of UTF-8, but no character
                continue
            found, before, after = text[first:last], text[first - 1 : first], text[last : last + 1]
            if _makes_sense(meant, found, before, after):
                yield found


def _makes_sense(meant: str, found: str, before: str, after: str) -> bool:
    """Whether `found` rather stands for `meant` than for itself, between two characters."""
    if len(meant) > 1:  # several groups in a row
        return True
    code = ord(meant)
    if code >= 0x10000 or code in _SIGNS or code >= 0xF900:  # emoji, signs, full width
        return True
    if 0x1EA0 <= code < 0x1F00:  # Vietnamese; but á» and a sign also end a Spanish quotation
        return found[-1] not in _CLOSES
    if code >= 0x180 or code < 0xA0:
        return False
    if code >= 0x100:  # Ä or Å; but Å² and Å·m are units
        return found not in ("Å²", "Å³", "Å·") and (
            before.islower() or (after.islower() and not before.isupper()))
    ends_a_word = before.isupper() or before in ("“", "„", "‘", "«", '"', "'")
    return not (ends_a_word and found[-1] in _CLOSES and not after.isalpha())
