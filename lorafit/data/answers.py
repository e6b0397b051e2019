"""Which messages of a conversation are trained, and whether they say something: known without a
tokenizer."""

from collections.abc import Iterator, Sequence

from lorafit.data.examples import Conversation, Message, Trainable

_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"  # str.strip leaves them


def empty_answer(example: Trainable, train_on: str) -> str | None:
    """The first turn of the assistant that is trained and says nothing, in words."""
    if not isinstance(example, Conversation):
        return None  # its format has refused an empty one
    for number, message in _trained(example.messages, train_on):
        if message.role == "assistant" and not _says_something(message):
            return f"message {number} (assistant) is empty"
    return None


def nothing_trained(example: Trainable, train_on: str) -> str | None:
    """In words, that the weights of a conversation's messages leave nothing to train."""
    if not isinstance(example, Conversation) or train_on == "all":
        return None
    if any(message.weight is not None or message.role == "assistant"
           for _, message in _trained(example.messages, train_on)):
        return None
    return "nothing in the row would be trained"


def _trained(messages: Sequence[Message], train_on: str) -> Iterator[tuple[int, Message]]:
    """Messages with their numbers that a weight or `train_on` chooses, whoever speaks."""
    first = _first_trained(messages, train_on)
    for number, message in enumerate(messages, 1):
        if number > first if message.weight is None else message.weight > 0:
            yield number, message


def _first_trained(messages: Sequence[Message], train_on: str) -> int:
    """How many messages stand before those that `train_on` chooses from."""
    if train_on not in ("last", "completion"):
        return 0
    last_of = "assistant" if train_on == "last" else "user"
    numbers = [n for n, message in enumerate(messages) if message.role == last_of]
    if not numbers:
        return 0
    return numbers[-1] if train_on == "last" else numbers[-1] + 1


def _says_something(message: Message) -> bool:
    said = message.content + (message.reasoning or "")
    return bool(message.tool_calls or said.strip().strip(_INVISIBLE).strip())
