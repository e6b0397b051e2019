"""A whole conversation: its messages checked against each other, system message and tools."""

from collections.abc import Mapping, Sequence
from typing import Any

from lorafit.data.examples import BadRow, Conversation, Exchange, Message
from lorafit.data.formats.cells import optional_text
from lorafit.data.formats.tools import tools_of

# How calls look in the text of data made for models that write them so.
_WRITTEN_CALLS = ("<tool_call", "<|tool_call", "<functioncall", "[TOOL_CALLS]")
_INSTRUCTING = ("system", "developer")


def conversation(messages: Sequence[Message], fields: Mapping[str, Any],
                 mapping: Mapping[str, str]) -> Conversation:
    """The messages with the row's tools, and its system message unless they bring their own.

    BadRow when the assistant says nothing at all, or a tool answers a call that nobody made.
    """
    system = optional_text(fields, mapping, "system")
    if system and not (messages and messages[0].role in _INSTRUCTING):
        messages = [Message("system", system), *messages]
    check_answers(messages)
    _check_tool_results(messages)
    return Conversation(tuple(messages), tools_of(fields, mapping))


def as_conversation(exchange: Exchange) -> Conversation:
    """A prompt and its completion as turns."""
    system = [Message("system", exchange.system)] if exchange.system else []
    return Conversation((*system, Message("user", exchange.prompt),
                         Message("assistant", exchange.completion)))


def without_instructions(messages: Sequence[Message]) -> list[Message]:
    """The messages after those of the system and the developer at the start."""
    start = next((number for number, message in enumerate(messages)
                  if message.role not in _INSTRUCTING), len(messages))
    return list(messages[start:])


def check_answers(messages: Sequence[Message]) -> None:
    """BadRow when no message is the assistant's, or all that are say and call nothing."""
    answers = [message for message in messages if message.role == "assistant"]
    if not answers:
        raise BadRow("no message is the assistant's, so the row would train nothing",
                     "remove the row")
    if not any(answer.content.strip() or answer.tool_calls or (answer.reasoning or "").strip()
               for answer in answers):
        raise BadRow("the assistant says nothing, so the row would train nothing",
                     "remove the row")


def _check_tool_results(messages: Sequence[Message]) -> None:
    called = False
    known: list[str | None] = []  # ids of the calls so far
    for number, message in enumerate(messages, 1):
        if message.role == "assistant":
            known += [call.get("id") for call in message.tool_calls]
            called |= bool(message.tool_calls) or any(
                mark in message.content for mark in _WRITTEN_CALLS)
        elif message.role == "tool":
            if not called:
                raise BadRow(f"message {number} is a tool's result, but no tool was called before",
                             "add the call to the assistant's message, or remove the result")
            answers = message.tool_call_id
            if answers is not None and known and None not in known and answers not in known:
                raise BadRow(f"message {number} answers the tool call {answers!r}, "
                             "which nobody made",
                             "write the id of an earlier call in tool_call_id, or leave it out")
