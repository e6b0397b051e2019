"""Names that become part of a path or of an address."""

import re

from lorafit.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def is_name(text: str) -> bool:
    """Whether a text can be a file's name on any system and a part of any address: 1 to 64 letters,
    digits, `_`, `.` and `-`, and neither `.` nor `..`."""
    return _NAME.fullmatch(text) is not None and text.strip(".") != ""


def check_name(text: str, where: str, remedy: str) -> None:
    """UserError for a text that is no such name."""
    if not is_name(text):
        shown = text if len(text) <= 80 else f"{text[:77]}…"
        raise UserError(f"{shown!r} is no name: it must be 1 to 64 letters, digits, _, . and -",
                        where, remedy)
