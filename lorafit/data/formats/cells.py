"""Values of a row's columns: JSON kept as text, and keys that say nothing."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lorafit.data.examples import BadRow, refuse_broken_text, text_of


def cell(fields: Mapping[str, Any], mapping: Mapping[str, str], role: str) -> Any:
    """The value in the column that plays `role`; None where there is no such column."""
    return fields.get(mapping[role]) if role in mapping else None


def optional_text(fields: Mapping[str, Any], mapping: Mapping[str, str], role: str) -> str:
    """The text in the column that plays `role`, or the empty string."""
    return text_of(fields, mapping[role], optional=True) if role in mapping else ""


def decoded(value: Any, name: str) -> Any:
    """`value`, read as JSON where it is text, which is how CSV and Parquet often hold lists."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRow(f"{name} is text that is not JSON", "write it as JSON") from None


def json_object(value: Any, name: str, *, exact: bool = False) -> dict[str, Any]:
    """An object, or the JSON text of one; BadRow when JSON could not hold it.

    Keys that are null are dropped at every depth unless `exact` or the value is text: Arrow gives
    each row all the keys that some row has.
    """
    exact = exact or isinstance(value, str)
    value = decoded(value, name)
    if not isinstance(value, dict):
        raise BadRow(f"{name} is {type(value).__name__}, not an object", "write {…}")
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        value = value if exact else _without_nulls(value)
    except (TypeError, ValueError, RecursionError):
        raise BadRow(f"{name} holds a value that JSON has no form for",
                     "write numbers as numbers, and everything else as text") from None
    refuse_broken_text(text, name)
    return value


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


@contextmanager
def within(column: str) -> Iterator[None]:
    """Say in which column a BadRow stands, where a row has several with messages."""
    try:
        yield
    except BadRow as bad:
        raise BadRow(f"{column}: {bad.what}", bad.remedy) from None
