"""Who answers: what a conversation needs of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Messages = list[dict[str, str]]
Settings = Mapping[str, Any]  # parameters of a request, in OpenAI's names


class Trouble(Exception):
    """Something that went wrong and does not end the conversation."""


@dataclass(frozen=True)
class Ended:
    """The end of an answer: OpenAI's finish_reason."""

    reason: str


Event = tuple[int, str | Ended]


class Speakers(Protocol):
    """Who can be asked. base: the name of the base, None where it is not known."""

    base: str | None

    def names(self) -> list[str]:
        """All names, the base's first."""

    def ask(self, asked: Sequence[tuple[str, Messages]], settings: Settings) -> Iterator[Event]:
        """The answers of some names as they come, by their places in `asked`. Closing the iterator
        stops them. Trouble when a request is refused."""

    def tokens(self, name: str, messages: Messages) -> list[tuple[int, str]]:
        """The rendered prompt, token by token."""

    def add(self, text: str) -> str:
        """Load the adapter that `RUN` or `NAME=RUN` means; its name."""
