"""Pairs of answers to one prompt, of which the first is preferred."""

from collections.abc import Mapping, Sequence
from typing import Any

from lorafit.data.examples import (
    BadRow,
    Conversation,
    Exchange,
    Message,
    Preference,
    answer_of,
)
from lorafit.data.formats import alpaca
from lorafit.data.formats.cells import cell, optional_text, within
from lorafit.data.formats.conversation import (
    as_conversation,
    conversation,
    without_instructions,
)
from lorafit.data.formats.tools import tools_of
from lorafit.data.formats.transcript import is_transcript, read_transcript
from lorafit.data.formats.turns import read_either, spelling, turns_in, turns_or_none

NAME = "preference"
ROLES = {"chosen": ("chosen",), "rejected": ("rejected",),
         "prompt": ("prompt", "question", "query", "instruction"), "input": ("input",),
         "messages": ("messages", "conversations", "conversation"),
         "system": ("system", "system_prompt"), "tools": ("tools", "functions")}
REQUIRED = (("chosen", "rejected"),)

Columns = Mapping[str, str]
Fields = Mapping[str, Any]


def recognise(fields: Fields, mapping: Columns) -> str | None:
    """What the row has, where both answers are texts, transcripts or messages."""
    columns = [mapping["chosen"], mapping["rejected"]]
    values = [fields.get(column) for column in columns]
    if not all(isinstance(value, str) or turns_or_none(value) for value in values):
        return None
    first = values[0]
    turns = turns_or_none(first)
    if turns is not None:
        how = f" with {spelling(turns) or 'messages'}"
    elif is_transcript(str(first)):
        how = " as transcripts"
    else:
        how = f" and {mapping['prompt']}" if "prompt" in mapping else ""
    return ", ".join(columns) + how


def convert(fields: Fields, mapping: Columns) -> Preference:
    """A row as two answers; BadRow when they are the same or do not answer the same prompt."""
    chosen, rejected = (_side(fields, mapping, mapping[role]) for role in REQUIRED[0])
    if isinstance(chosen, Exchange) and isinstance(rejected, Exchange):
        pair = Preference(chosen, rejected)
    else:
        pair = Preference(_turns(chosen), _turns(rejected))
    if pair.chosen == pair.rejected:
        raise BadRow(f"{mapping['chosen']} and {mapping['rejected']} are the same, so nothing is "
                     "preferred", "remove the row")
    _check_prompts(_turns(pair.chosen).messages, _turns(pair.rejected).messages)
    return pair


def _turns(example: Conversation | Exchange) -> Conversation:
    return as_conversation(example) if isinstance(example, Exchange) else example


def _side(fields: Fields, mapping: Columns, column: str) -> Conversation | Exchange:
    """One of the two answers with its prompt."""
    turns = turns_or_none(fields.get(column))
    if turns is not None:
        with within(column):
            answer = read_either(turns)
        return _continued(fields, mapping, column, answer)
    text = answer_of(fields, column)
    if is_transcript(text):
        with within(column):
            return conversation(read_transcript(text), fields, mapping)
    prompt = cell(fields, mapping, "prompt")
    is_text = isinstance(prompt, str) and turns_or_none(prompt) is None
    if is_text and is_transcript(prompt):
        text = text.removeprefix(" ")  # the one between `Assistant:` and the answer
    elif is_text and not tools_of(fields, mapping):
        return Exchange(alpaca.prompt_text(fields, mapping), text,
                        optional_text(fields, mapping, "system") or None)
    return _continued(fields, mapping, column, [Message("assistant", text)])


def _continued(fields: Fields, mapping: Columns, column: str,
               answer: list[Message]) -> Conversation:
    """The answer after its prompt, or alone where it holds the whole conversation."""
    if answer[0].role in ("assistant", "tool"):
        messages = [*_prompt(fields, mapping, column), *answer]
    else:
        messages = answer
        if turns_or_none(cell(fields, mapping, "prompt")) is not None:
            _check_repeated(messages, _prompt(fields, mapping, column), column)
    with within(column):
        return conversation(messages, fields, mapping)


def _prompt(fields: Fields, mapping: Columns, column: str) -> list[Message]:
    """The turns before the answer, from the column of the prompt or that of the messages."""
    if "prompt" in mapping:
        name = mapping["prompt"]
        turns = turns_or_none(fields.get(name))
        if turns is not None:
            with within(name):
                return read_either(turns)
        text = alpaca.prompt_text(fields, mapping)
        return _open(read_transcript(text)) if is_transcript(text) else [Message("user", text)]
    if "messages" in mapping:
        name = mapping["messages"]
        with within(name):
            return read_either(turns_in(fields, name))
    raise BadRow(f"{column} is an answer without its prompt",
                 "add a column prompt, name it in data.columns.prompt, or write whole "
                 "conversations as lists of messages")


def _open(messages: list[Message]) -> list[Message]:
    """The turns of a transcript that ends where the assistant is to speak."""
    last = messages[-1]
    return messages[:-1] if last.role == "assistant" and not last.content.strip() else messages


def _check_repeated(messages: list[Message], prompt: list[Message], column: str) -> None:
    if messages[:len(prompt)] != prompt:
        raise BadRow(f"{column} neither repeats the prompt's messages nor goes on with the answer",
                     "write the whole conversation, or the answer alone")


def _check_prompts(chosen: Sequence[Message], rejected: Sequence[Message]) -> None:
    """Answers that part after some common turns can be compared; two conversations cannot."""
    pairs = list(zip(chosen, rejected, strict=False))
    parted = next((number for number, (one, other) in enumerate(pairs) if one != other), None)
    if parted is None or without_instructions(chosen[:parted]):
        return
    if any(message.role != "assistant" for message in pairs[parted]):
        raise BadRow(f"chosen and rejected differ from message {parted + 1} on, before the "
                     "assistant has spoken", "give both the same prompt, or remove the row")
