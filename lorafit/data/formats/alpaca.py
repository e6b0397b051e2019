"""Alpaca rows: instruction, optional input, output, and the turns that went before."""

from collections.abc import Mapping
from typing import Any

from lorafit.data.examples import (
    BadRow,
    Conversation,
    Exchange,
    Message,
    answer_of,
    refuse_broken_text,
    text_of,
)
from lorafit.data.formats.cells import cell, decoded, optional_text
from lorafit.data.formats.conversation import conversation

NAME = "alpaca"
ROLES = {"prompt": ("instruction",), "input": ("input",), "completion": ("output", "response"),
         "system": ("system", "system_prompt"), "history": ("history",)}
REQUIRED = (("prompt", "completion"),)


def recognise(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> str | None:
    """What the row has, where its prompt is an instruction."""
    if mapping["prompt"] not in ROLES["prompt"]:
        return None
    return ", ".join(mapping[role] for role in ROLES if role in mapping)


def convert(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> Exchange | Conversation:
    """A row as instruction (and input) with its answer, or with a history as a conversation.

    BadRow when a column is missing, the answer is empty or the history malformed.
    """
    prompt = prompt_text(fields, mapping)
    completion = answer_of(fields, mapping["completion"])
    history = _history(fields, mapping)
    if history:
        last = Message("user", prompt), Message("assistant", completion)
        return conversation([*history, *last], fields, mapping)
    instruction = text_of(fields, mapping["prompt"])
    extra = optional_text(fields, mapping, "input")
    parts = [f"### Instruction:\n{instruction}"]
    if extra:
        parts.append(f"### Input:\n{extra}")
    parts.append("### Response:\n")
    return Exchange(
        prompt=prompt,
        completion=completion,
        system=optional_text(fields, mapping, "system") or None,
        plain_prompt="\n\n".join(parts),
    )


def prompt_text(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> str:
    """The instruction with its input below."""
    instruction = text_of(fields, mapping["prompt"])
    extra = optional_text(fields, mapping, "input")
    return f"{instruction}\n\n{extra}" if extra else instruction


def _history(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> list[Message]:
    """Earlier turns, from a list of [question, answer] pairs or its JSON text."""
    value = cell(fields, mapping, "history")
    if value is None or value == "":
        return []
    column = mapping["history"]
    pairs = decoded(value, column)
    remedy = "write [[question, answer], …]"
    if not isinstance(pairs, list):
        raise BadRow(f"{column} is no list of pairs", remedy)
    messages = []
    for number, pair in enumerate(pairs, 1):
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not is_pair or not all(isinstance(text, str) for text in pair):
            raise BadRow(f"pair {number} of {column} is no pair of texts", remedy)
        for role, text in zip(("user", "assistant"), pair, strict=True):
            refuse_broken_text(text, f"pair {number} of {column}")
            messages.append(Message(role, text))
    return messages
