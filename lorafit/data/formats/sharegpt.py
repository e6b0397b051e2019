"""ShareGPT's conversations: turns with `from` and `value`."""

from collections.abc import Mapping
from typing import Any

from lorafit.data.examples import Conversation
from lorafit.data.formats.conversation import conversation
from lorafit.data.formats.from_value import read_turns
from lorafit.data.formats.turns import spelling_in, turns_in

NAME = "sharegpt"
ROLES = {"messages": ("conversations", "conversation", "messages"),
         "system": ("system", "system_prompt"), "tools": ("tools", "functions")}
REQUIRED = (("messages",),)


def recognise(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> str | None:
    """What the row has, where its turns are written with from and value."""
    column = mapping["messages"]
    how = spelling_in(fields, column)
    return f"{column} with {how}" if how == "from/value" else None


def convert(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> Conversation:
    """A row with turns of from and value; BadRow when one is malformed or nobody answers."""
    turns = turns_in(fields, mapping["messages"])
    return conversation(read_turns(turns), fields, mapping)
