"""Conversations: a list of messages with `role` and `content`."""

from collections.abc import Mapping
from typing import Any

from lorafit.data import examples
from lorafit.data.examples import BadRow, Conversation, Message, text_of

NAME = "chat"
ROLES = {"messages": ("messages", "conversation", "conversations")}
REQUIRED = ("messages",)


def convert(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> Conversation:
    """A row with a list of messages; BadRow when no assistant speaks or a message is malformed."""
    column = mapping["messages"]
    if column not in fields:
        raise BadRow(f"the row lacks the column {column}", "add it, or correct data.columns")
    turns = fields[column]
    if not isinstance(turns, list) or not turns:
        raise BadRow(f"{column} is no list of messages", 'write [{"role": …, "content": …}, …]')
    messages = [_message(turn, number) for number, turn in enumerate(turns, 1)]
    system = text_of(fields, mapping["system"], optional=True) if "system" in mapping else ""
    if system and messages[0].role != "system":
        messages.insert(0, Message("system", system))
    answers = [message for message in messages if message.role == "assistant"]
    if not answers:
        raise BadRow("no message is the assistant's, so the row would train nothing",
                     "remove the row")
    if not any(answer.content.strip() for answer in answers):
        raise BadRow("the assistant says nothing, so the row would train nothing",
                     "remove the row")
    return Conversation(tuple(messages))


def _message(turn: Any, number: int) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(f"message {number} is {type(turn).__name__}, not an object",
                     'write {"role": …, "content": …}')
    for key in ("role", "content"):
        if not isinstance(turn.get(key), str):
            raise BadRow(f"message {number} has no text in `{key}`",
                         'write {"role": …, "content": …}')
    examples.refuse_broken_text(turn["content"], f"message {number}")
    if turn["role"] not in examples.ROLES:
        raise BadRow(f"message {number} has the role {turn['role']!r}",
                     f"use one of {', '.join(examples.ROLES)}")
    return Message(turn["role"], turn["content"])
