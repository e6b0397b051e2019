"""The one internal form of a row, whatever shape it came in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str

    def as_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Conversation:
    """Chat turns; the assistant's are trained."""

    messages: tuple[Message, ...]

    def as_dicts(self) -> list[dict[str, str]]:
        return [message.as_dict() for message in self.messages]


@dataclass(frozen=True)
class Exchange:
    """A prompt and its completion, not yet rendered: as a chat or one text after the other."""

    prompt: str
    completion: str
    system: str | None = None
    plain_prompt: str | None = None  # the prompt's wording outside a chat, where it differs


@dataclass(frozen=True)
class Passage:
    """Plain text, trained as a whole."""

    text: str


Example = Conversation | Exchange | Passage


class BadRow(Exception):
    """A row that does not fit its format: `what` is wrong and the `remedy`."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


def text_of(fields: Mapping[str, Any], column: str, *, optional: bool = False) -> str:
    """The string in `column`; BadRow when it is missing or something else."""
    value = fields.get(column)
    if value is None and optional:
        return ""
    if column not in fields:
        raise BadRow(f"the row lacks the column {column}", "add it, or correct data.columns")
    if not isinstance(value, str):
        raise BadRow(f"{column} is {type(value).__name__}, not text",
                     "write it as a string, or correct data.columns")
    refuse_broken_text(value, column)
    return value


def refuse_broken_text(value: str, name: str) -> None:
    """BadRow for half a surrogate pair, which JSON can spell and no tokenizer can read."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"{name} holds a broken character (\\u{ord(value[error.start]):04x} alone)",
                     "mend the text; it was cut in the middle of a character") from None


def answer_of(fields: Mapping[str, Any], column: str) -> str:
    """The string in `column`, which must not be blank: there would be nothing to learn."""
    value = text_of(fields, column)
    if not value.strip():
        raise BadRow(f"{column} is empty, so the row would train nothing", "remove the row")
    return value
