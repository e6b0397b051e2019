"""Whether a value is valid by the published JSON schema: the rule that says which of the values
drawn for a key are wrong. It knows nothing of how lorafit reads a recipe."""

import json
import math
from pathlib import Path
from typing import Any

SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "recipe.schema.json").read_text())

_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict,
    "array": list, "null": type(None),
}


def sections() -> dict[str, dict[str, Any]]:
    """The keys of each section with the schema of their values."""
    return {name: _resolved(section)["properties"]
            for name, section in SCHEMA["properties"].items()}


def is_valid(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value fits a schema; of the vocabulary, what the recipe's schema uses."""
    schema = _resolved(schema)
    for several in ("anyOf", "oneOf"):
        if several in schema and not any(is_valid(value, each) for each in schema[several]):
            return False
    if "type" in schema and not _is_of(value, schema["type"]):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if isinstance(value, list):
        fits = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf)
        return fits and all(is_valid(item, schema.get("items", {})) for item in value)
    if isinstance(value, dict):
        return _is_valid_object(value, schema)
    return not isinstance(value, int | float) or _is_in_range(value, schema)


def _is_valid_object(value: dict[str, Any], schema: dict[str, Any]) -> bool:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    if any(name not in value for name in schema.get("required", ())):
        return False
    for key, item in value.items():
        if key not in known and others is False:
            return False
        if not is_valid(item, known.get(key, others if isinstance(others, dict) else {})):
            return False
    return True


def _is_in_range(value: float, schema: dict[str, Any]) -> bool:
    return (math.isfinite(value) and value >= schema.get("minimum", -math.inf)
            and value <= schema.get("maximum", math.inf)
            and value > schema.get("exclusiveMinimum", -math.inf)
            and value < schema.get("exclusiveMaximum", math.inf))


def _is_of(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _TYPES[name])


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema
