"""Turns written as ShareGPT's: `from` and `value`."""

from collections.abc import Sequence
from typing import Any

from lorafit.data.examples import BadRow, Message
from lorafit.data.formats.cells import decoded
from lorafit.data.formats.messages import present, turn_text, weight_of
from lorafit.data.formats.tools import tool_call

_SPEAKERS = {
    "system": "system",
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "model": "assistant",
    "observation": "tool", "function_response": "tool", "tool": "tool",
}
_CALL = "function_call"


def read_turns(turns: Sequence[Any]) -> list[Message]:
    """Messages of turns with `from` and `value`."""
    return [_message(present(turn, f"message {number}"), f"message {number}")
            for number, turn in enumerate(turns, 1)]


def _message(turn: dict[str, Any], name: str) -> Message:
    speaker = turn_text(turn, "from", name)
    weight = weight_of(turn, name)
    if speaker == _CALL:
        return Message("assistant", "", tool_calls=_calls(turn.get("value"), name), weight=weight)
    if speaker not in _SPEAKERS:
        raise BadRow(f"{name} is from {speaker!r}",
                     f"use one of {', '.join([*_SPEAKERS, _CALL])}")
    return Message(_SPEAKERS[speaker], turn_text(turn, "value", name), weight=weight)


def _calls(value: Any, name: str) -> tuple[dict[str, Any], ...]:
    """The calls of a turn: one, or a list of them, mostly as JSON text."""
    exact = isinstance(value, str)
    found = decoded(value, f"the call in {name}")
    calls = found if isinstance(found, list) else [found]
    if not calls:
        raise BadRow(f"{name} calls no tool", "remove it")
    return tuple(tool_call(call, f"tool call {number} of {name}", exact=exact)
                 for number, call in enumerate(calls, 1))
