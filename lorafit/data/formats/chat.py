"""OpenAI's conversations: a list of messages with `role` and `content`."""

from collections.abc import Mapping
from typing import Any

from lorafit.data.examples import BadRow, Conversation
from lorafit.data.formats.conversation import conversation
from lorafit.data.formats.messages import read_messages
from lorafit.data.formats.turns import spelling_in, turns_in

NAME = "chat"
ROLES = {"messages": ("messages", "conversation", "conversations"),
         "system": ("system", "system_prompt"), "tools": ("tools", "functions")}
REQUIRED = (("messages",),)


def recognise(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> str | None:
    """What the row has, where its messages are written with role and content."""
    column = mapping["messages"]
    how = spelling_in(fields, column)
    return f"{column} with {how}" if how == "role/content" else None


def convert(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> Conversation:
    """A row with a list of messages; BadRow when no assistant speaks or a message is malformed."""
    column = mapping["messages"]
    turns = turns_in(fields, column)
    if spelling_in(fields, column) == "from/value":
        raise BadRow(f"{column} has turns with from/value, not role/content",
                     "set data.format to sharegpt")
    return conversation(read_messages(turns), fields, mapping)
