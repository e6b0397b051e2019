"""The one internal form of a row, whatever shape it came in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    reasoning: what the assistant thought before it spoke. tool_calls: the assistant's calls, as
    `{"type": "function", "function": {"name": str, "arguments": dict}}` with an `id` where the row
    has one. tool_call_id and name: which call a tool's result answers. weight: of the loss on this
    message; None leaves it to the recipe, 0 trains nothing of it.
    """

    role: str
    content: str
    reasoning: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    weight: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The message as chat templates read it, without keys that say nothing."""
        values: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            values["reasoning_content"] = self.reasoning
        if self.tool_calls:
            values["tool_calls"] = list(self.tool_calls)
        if self.tool_call_id is not None:
            values["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            values["name"] = self.name
        return values


@dataclass(frozen=True)
class Conversation:
    """Chat turns, and the JSON schemas of the tools that the assistant may call."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()

    def as_dicts(self) -> list[dict[str, Any]]:
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


@dataclass(frozen=True)
class Preference:
    """Two answers to the same prompt, of which the first is preferred."""

    chosen: Conversation | Exchange
    rejected: Conversation | Exchange


@dataclass(frozen=True)
class Judged:
    """An answer that is wanted or not, without another one to compare it with."""

    example: Conversation | Exchange
    wanted: bool


Trainable = Conversation | Exchange | Passage  # what a renderer takes
Example = Trainable | Preference | Judged


def trained_part(example: Example) -> Trainable | None:
    """What is trained of a row: of a pair the preferred answer, of a judged one only a wanted."""
    if isinstance(example, Preference):
        return example.chosen
    if isinstance(example, Judged):
        return example.example if example.wanted else None
    return example


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
