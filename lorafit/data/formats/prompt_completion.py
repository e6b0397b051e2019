"""Rows with a prompt and its completion, as texts or as lists of messages."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lorafit.data.examples import Conversation, Exchange, Message, answer_of, text_of
from lorafit.data.formats.cells import optional_text, within
from lorafit.data.formats.conversation import as_conversation, check_answers, conversation
from lorafit.data.formats.tools import tools_of
from lorafit.data.formats.turns import read_either, turns_or_none

NAME = "prompt_completion"
ROLES = {"prompt": ("prompt", "question", "query", "input"),
         "completion": ("completion", "answer", "response", "output"),
         "system": ("system", "system_prompt"), "tools": ("tools", "functions")}
REQUIRED = (("prompt", "completion"),)


def recognise(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> str | None:
    """What the row has, where prompt and completion are texts or messages."""
    columns = [mapping["prompt"], mapping["completion"]]
    values = [fields.get(column) for column in columns]
    if not all(isinstance(value, str) or turns_or_none(value) for value in values):
        return None
    columns += [mapping[role] for role in ("system", "tools") if role in mapping]
    return ", ".join(columns)


def convert(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> Exchange | Conversation:
    """A row as prompt and completion, or as a conversation where it has messages or tools.

    Only the completion is trained: the assistant's messages in the prompt get the weight 0 unless
    they bring their own. BadRow when a column is missing or the answer is empty.
    """
    if all(turns_or_none(fields.get(mapping[role])) is None for role in REQUIRED[0]):
        tools = tools_of(fields, mapping)
        exchange = Exchange(
            prompt=text_of(fields, mapping["prompt"]),
            completion=answer_of(fields, mapping["completion"]),
            system=optional_text(fields, mapping, "system") or None,
        )
        return replace(as_conversation(exchange), tools=tools) if tools else exchange
    prompt = [_untrained(message) for message in prompt_messages(fields, mapping["prompt"])]
    turns = turns_or_none(fields.get(mapping["completion"]))
    if turns is None:
        completion = [Message("assistant", answer_of(fields, mapping["completion"]))]
    else:
        with within(mapping["completion"]):
            completion = read_either(turns)
            check_answers(completion)
    return conversation([*prompt, *completion], fields, mapping)


def prompt_messages(fields: Mapping[str, Any], column: str) -> list[Message]:
    """The messages of a prompt, which may be one text."""
    turns = turns_or_none(fields.get(column))
    if turns is None:
        return [Message("user", text_of(fields, column))]
    with within(column):
        return read_either(turns)


def _untrained(message: Message) -> Message:
    if message.role != "assistant" or message.weight is not None:
        return message
    return replace(message, weight=0.0)
