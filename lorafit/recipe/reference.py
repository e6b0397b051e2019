"""The JSON schema for editors and the reference page in docs/, both from the schema classes."""

import json
import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lorafit.recipe.schema import Checks, Columns, Recipe, Source

_INTRO = """\
# Recipe reference

<!-- Generated from lorafit/recipe/schema.py by `make docs`; do not edit. -->

A recipe is YAML. `model.base`, `data.train` and `output.dir` are required; everything else has
the default shown. Any key can be overridden on the command line: `--set adapter.rank=8`. Numbers
such as `1e-5` are numbers. Relative paths start from the working directory, then from the recipe's.
`lorafit schema` prints the JSON schema for editors.
"""


def json_schema() -> str:
    """The JSON schema of a recipe, as text."""
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "lorafit recipe"
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def markdown() -> str:
    """The reference page: a table for each section."""
    parts = [_INTRO]
    for name, field in Recipe.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        parts.append(_section(f"`{name}`", section))
    parts.append(_section("A source, in `data.train` and `data.eval`", Source))
    parts.append(_section("`data.columns`", Columns))
    parts.append(_section("`data.checks`", Checks))
    return "\n".join(parts)


def _section(title: str, section: type[BaseModel]) -> str:
    lines = [f"## {title}", "", " ".join((section.__doc__ or "").split()), "",
             "| key | type | default | effect |", "|---|---|---|---|"]
    for key, field in section.model_fields.items():
        effect = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{key}` | {_type(field)} | {_default(field)} | {effect} |")
    return "\n".join(lines) + "\n"


def _type(field: FieldInfo) -> str:
    return _type_name(field.annotation).replace("|", "\\|")


def _type_name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        names = [_type_name(argument) for argument in arguments if argument is not type(None)]
        return " or ".join(dict.fromkeys(names))
    if origin is list:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"{_type_name(arguments[0])} to {_type_name(arguments[1])}"
    words: dict[Any, str] = {str: "text", int: "whole number", float: "number",
                             bool: "true or false", Source: "source", Columns: "mapping",
                             Checks: "mapping", Any: "any value"}
    return words.get(annotation, str(annotation))


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return ""
    return f"`{json.dumps(field.default)}`"
