"""Turns written as OpenAI's messages: `role`, `content` and what may stand beside them."""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lorafit.data.examples import ROLES, BadRow, Message, refuse_broken_text
from lorafit.data.formats.tools import tool_call

_OLD_ROLES = {"function": "tool"}  # before OpenAI had tools
_REASONING = ("reasoning_content", "reasoning", "thinking")
_SWITCHES = ("train", "training")
_PARTLY = ("train_detail", "training_detail")  # axolotl's: which characters are trained


def read_messages(turns: Sequence[Any]) -> list[Message]:
    """Messages with `role` and `content`; BadRow naming the message that is malformed."""
    return [_message(present(turn, f"message {number}"), f"message {number}")
            for number, turn in enumerate(turns, 1)]


def present(turn: Any, name: str) -> dict[str, Any]:
    """The keys of a turn that are not null: Arrow gives each turn the keys of all others."""
    if not isinstance(turn, dict):
        raise BadRow(f"{name} is {type(turn).__name__}, not an object",
                     'write {"role": …, "content": …}')
    return {key: value for key, value in turn.items() if value is not None}


def turn_text(turn: Mapping[str, Any], key: str, name: str) -> str:
    """The text under `key`; BadRow naming the key that looks like it when it is missing."""
    value = turn.get(key)
    if not isinstance(value, str):
        near = [] if key in turn else difflib.get_close_matches(key, turn, 1, 0.6)
        has = f", but has `{near[0]}`" if near else ""
        raise BadRow(f"{name} has no text in `{key}`{has}",
                     "rename that key" if near else f"write `{key}` as a string")
    refuse_broken_text(value, name)
    return value


def weight_of(turn: Mapping[str, Any], name: str) -> float | None:
    """The factor on the turn's loss: `weight`, or 1 or 0 by `train` or `training`."""
    if partly := next((key for key in _PARTLY if key in turn), None):
        raise BadRow(f"{name} has a `{partly}`, but messages are trained as a whole",
                     "remove that key, and set `weight` to 0 where nothing is to be trained")
    weight = turn.get("weight")
    if weight is not None:
        try:
            usable = not isinstance(weight, bool) and math.isfinite(weight) and weight >= 0
        except (TypeError, OverflowError):
            usable = False
        if not usable:
            raise BadRow(f"{name} has a weight that is no number from 0 up",
                         "write 0 to train nothing of it, 1 to train it")
        return float(weight)
    key = next((key for key in _SWITCHES if key in turn), None)
    if key is None:
        return None
    if not isinstance(turn[key], bool):
        raise BadRow(f"{name} has a `{key}` that is neither true nor false",
                     "write true or false, or leave it out")
    return float(turn[key])


def _message(turn: dict[str, Any], name: str) -> Message:
    written = turn_text(turn, "role", name)
    role = _OLD_ROLES.get(written, written)
    if role not in ROLES:
        raise BadRow(f"{name} has the role {written!r}", f"use one of {', '.join(ROLES)}")
    calls = _tool_calls(turn, name)
    if calls and role != "assistant":
        raise BadRow(f"{name} has tool calls, but is not the assistant's",
                     "give it the role assistant, or remove the calls")
    reasoning = _reasoning(turn, name) if role == "assistant" else None
    is_silent = "content" not in turn and (calls or reasoning)
    return Message(
        role=role,
        content="" if is_silent else _content(turn, name),
        reasoning=reasoning,
        tool_calls=calls,
        tool_call_id=turn_text(turn, "tool_call_id", name) if "tool_call_id" in turn else None,
        name=turn_text(turn, "name", name) if "name" in turn else None,
        weight=weight_of(turn, name),
    )


def _content(turn: dict[str, Any], name: str) -> str:
    """The text of a message; the parts of one written as a list are joined."""
    parts = turn.get("content")
    if not isinstance(parts, list):
        return turn_text(turn, "content", name)
    texts = []
    for number, value in enumerate(parts, 1):
        part = present(value, f"part {number} of {name}")
        kind = part.get("type", "text")
        if kind != "text":
            raise BadRow(f"part {number} of {name} is {kind!r}, and only text is trained",
                         "remove the row, or the part")
        texts.append(turn_text(part, "text", f"part {number} of {name}"))
    return "".join(texts)


def _reasoning(turn: dict[str, Any], name: str) -> str | None:
    for key in _REASONING:
        if key in turn:
            return turn_text(turn, key, name) or None
    return None


def _tool_calls(turn: dict[str, Any], name: str) -> tuple[dict[str, Any], ...]:
    values = turn.get("tool_calls", [])
    if not isinstance(values, list):
        raise BadRow(f"the tool_calls of {name} are no list",
                     'write [{"type": "function", "function": {"name": …, "arguments": …}}, …]')
    calls = [tool_call(value, f"tool call {number} of {name}")
             for number, value in enumerate(values, 1)]
    if "function_call" in turn:  # before OpenAI had tools
        calls.append(tool_call(turn["function_call"], f"the function_call of {name}"))
    return tuple(calls)
