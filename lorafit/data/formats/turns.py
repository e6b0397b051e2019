"""Lists of turns in either spelling, role/content or from/value."""

import json
from collections.abc import Mapping
from typing import Any

from lorafit.data.examples import BadRow, Message
from lorafit.data.formats.from_value import read_turns
from lorafit.data.formats.messages import read_messages

_SPELLINGS = {("role", "content"): "role/content", ("from", "value"): "from/value"}


def turns_in(fields: Mapping[str, Any], column: str) -> list[Any]:
    """The list of turns in `column`, also as JSON text; BadRow when it holds something else."""
    if column not in fields:
        raise BadRow(f"the row lacks the column {column}", "add it, or correct data.columns")
    value = fields[column]
    if isinstance(value, str):
        value = _loaded(value)
    if not isinstance(value, list) or not value:
        raise BadRow(f"{column} is no list of messages", 'write [{"role": …, "content": …}, …]')
    return value


def turns_or_none(value: Any) -> list[Any] | None:
    """A list of turns, one turn alone, or the JSON text of a list; None for anything else."""
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, str):
        value = _loaded(value)
        # An answer may be JSON itself: only what has both keys of a turn is taken for one.
        return value if spelling(value) else None
    is_turns = isinstance(value, list) and value and isinstance(value[0], dict)
    return value if is_turns and ("role" in value[0] or "from" in value[0]) else None


def spelling(turns: Any) -> str | None:
    """How the first turn is written: `role/content`, `from/value` or None."""
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], dict):
        return None
    first = turns[0]
    return next((name for (who, what), name in _SPELLINGS.items()
                 if first.get(who) is not None and what in first), None)


def spelling_in(fields: Mapping[str, Any], column: str) -> str | None:
    """`spelling` of the turns in a column, also as JSON text."""
    value = fields.get(column)
    return spelling(_loaded(value) if isinstance(value, str) else value)


def read_either(turns: list[Any]) -> list[Message]:
    """The messages of a list of turns, by the keys of the first."""
    is_sharegpt = isinstance(turns[0], dict) and turns[0].get("role") is None \
        and turns[0].get("from") is not None
    return read_turns(turns) if is_sharegpt else read_messages(turns)


def _loaded(text: str) -> Any:
    """Text as JSON; None where it is none, or holds no list."""
    if not text.lstrip().startswith("["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
