"""Plain text, trained as a whole."""

from collections.abc import Mapping
from typing import Any

from lorafit.data.examples import Passage, answer_of

NAME = "text"
ROLES = {"text": ("text", "content")}
REQUIRED = ("text",)


def convert(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> Passage:
    """A row of text; BadRow when it is blank."""
    return Passage(answer_of(fields, mapping["text"]))
