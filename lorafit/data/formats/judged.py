"""Single answers with a label that says whether they are wanted, as KTO takes them."""

from collections.abc import Mapping
from typing import Any

from lorafit.data.examples import BadRow, Conversation, Exchange, Judged
from lorafit.data.formats import alpaca, prompt_completion
from lorafit.data.formats.conversation import conversation
from lorafit.data.formats.turns import read_either, turns_in

NAME = "judged"
ROLES = {"label": ("label", "kto_tag"), "messages": ("messages", "conversation", "conversations"),
         "prompt": ("prompt", "question", "query", "instruction"), "input": ("input",),
         "completion": ("completion", "answer", "response", "output"),
         "system": ("system", "system_prompt"), "tools": ("tools", "functions")}
REQUIRED = (("label", "messages"), ("label", "prompt", "completion"))

_WANTED = ("true", "1", "good", "desirable")
_UNWANTED = ("false", "0", "bad", "undesirable")


def recognise(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> str | None:
    """What the row has, where its label says wanted or not."""
    if _verdict(fields.get(mapping["label"])) is None:
        return None
    roles = REQUIRED[0] if "messages" in mapping else REQUIRED[1]
    return ", ".join(mapping[role] for role in (*roles[1:], roles[0]))


def convert(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> Judged:
    """A row as an answer and its verdict; BadRow when the label is something else."""
    column = mapping["label"]
    if fields.get(column) is None:
        raise BadRow(f"the row lacks the column {column}", "add it, or correct data.columns")
    wanted = _verdict(fields[column])
    if wanted is None:
        raise BadRow(f"{column} is {str(fields[column])[:40]!r}, which says neither wanted nor "
                     "unwanted", "write true or false")
    return Judged(_example(fields, mapping), wanted)


def _example(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> Conversation | Exchange:
    if "messages" in mapping:
        return conversation(read_either(turns_in(fields, mapping["messages"])), fields, mapping)
    if "input" in mapping or mapping["prompt"] in alpaca.ROLES["prompt"]:
        return alpaca.convert(fields, mapping)
    return prompt_completion.convert(fields, mapping)


def _verdict(value: Any) -> bool | None:
    """True for wanted, False for unwanted, None for what is neither."""
    if isinstance(value, bool | int | float):
        return bool(value) if value in (0, 1) else None
    word = value.strip().lower() if isinstance(value, str) else ""
    return True if word in _WANTED else False if word in _UNWANTED else None
