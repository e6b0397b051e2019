"""Plain text, trained as a whole."""

from collections.abc import Mapping
from typing import Any

from lorafit.data.examples import Passage, answer_of

NAME = "text"
ROLES = {"text": ("text", "content")}
REQUIRED = (("text",),)


def recognise(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> str | None:
    """What the row has, where it is text."""
    column = mapping["text"]
    return column if isinstance(fields.get(column), str) else None


def convert(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> Passage:
    """A row of text; BadRow when it is blank."""
    return Passage(answer_of(fields, mapping["text"]))
