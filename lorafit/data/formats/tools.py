"""Calls of tools and the schemas of tools, in the spelling that chat templates read."""

from collections.abc import Mapping
from typing import Any

from lorafit.data.examples import BadRow
from lorafit.data.formats.cells import cell, decoded, json_object


def tools_of(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
    """The row's tools: a list of schemas, or the JSON text of one. Bare functions are wrapped."""
    value = cell(fields, mapping, "tools")
    if value is None or value == "":
        return ()
    column = mapping["tools"]
    exact = isinstance(value, str)
    value = decoded(value, column)
    if not isinstance(value, list):
        raise BadRow(f"{column} is no list of tools",
                     'write [{"type": "function", "function": {"name": …, "parameters": …}}, …]')
    return tuple(_tool(item, f"tool {number} in {column}", exact)
                 for number, item in enumerate(value, 1))


def _tool(value: Any, name: str, exact: bool) -> dict[str, Any]:
    tool = json_object(value, name, exact=exact)
    if "function" not in tool:  # the function alone
        tool = {"function": {key: item for key, item in tool.items() if key != "type"}}
    _function_name(tool["function"], name)
    return {"type": "function", **tool}


def tool_call(value: Any, name: str, *, exact: bool = False) -> dict[str, Any]:
    """A call as `{"type", "function": {"name", "arguments"}}` with its `id` where it has one.

    The function may stand alone; its arguments may be an object or the JSON text of one. `exact`:
    keep null keys, because the call comes from JSON text.
    """
    call = json_object(value, name, exact=exact)
    function = call.get("function")
    function = call if function is None else function
    function_name = _function_name(function, name)
    arguments = function.get("arguments")
    if arguments is None or arguments == "":
        arguments = {}
    kept: dict[str, Any] = {"type": "function", "function": {
        "name": function_name,
        "arguments": json_object(arguments, f"arguments of {name}", exact=exact),
    }}
    identifier = call.get("id")
    if identifier is None:
        return kept
    if not isinstance(identifier, str):
        raise BadRow(f"the id of {name} is {type(identifier).__name__}, not text",
                     "write it as a string")
    return {"id": identifier, **kept}


def _function_name(function: Any, name: str) -> str:
    found = function.get("name") if isinstance(function, dict) else None
    if not isinstance(found, str) or not found.strip():
        raise BadRow(f"{name} has no function name",
                     'write {"type": "function", "function": {"name": …, …}}')
    return found
