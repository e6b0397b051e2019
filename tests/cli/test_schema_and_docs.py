"""The JSON schema and the reference page agree with the schema classes."""

import json
from typing import Any

import pytest
from pydantic import BaseModel

from lorafit.recipe import reference
from lorafit.recipe.schema import Columns, Recipe, Source

SECTIONS: list[type[BaseModel]] = [
    *(field.annotation for field in Recipe.model_fields.values()
      if isinstance(field.annotation, type)), Source, Columns]


def rows_of_the_page() -> dict[str, dict[str, str]]:
    """Key to line of its table row, by heading."""
    tables: dict[str, dict[str, str]] = {}
    for line in reference.markdown().splitlines():
        if line.startswith("## "):
            table = tables.setdefault(line.removeprefix("## "), {})
        elif line.startswith("| `"):
            table[line.split("`")[1]] = line
    return tables


def test_every_key_of_the_schema_stands_in_the_reference_page() -> None:
    tables = rows_of_the_page()
    for name, field in Recipe.model_fields.items():
        assert isinstance(field.annotation, type)
        assert list(tables[f"`{name}`"]) == list(field.annotation.model_fields)
    assert list(tables["A source, in `data.train` and `data.eval`"]) == list(Source.model_fields)
    assert list(tables["`data.columns`"]) == list(Columns.model_fields)


def test_every_key_has_a_description_and_a_readable_type_in_the_page() -> None:
    for heading, table in rows_of_the_page().items():
        for key, row in table.items():
            cells = [cell.strip() for cell in row.replace("\\|", "/").strip("|").split("|")]
            assert len(cells) == 4, f"{heading}.{key}"
            assert cells[3], f"{heading}.{key} has no description"
            assert not any(sign in cells[1] for sign in ("<class", "typing", "Annotated", "[")), row


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_field_says_what_it_does(section: type[BaseModel]) -> None:
    assert section.__doc__
    for key, field in section.model_fields.items():
        assert field.description, key


def test_the_json_schema_refuses_unknown_keys_and_names_what_is_required() -> None:
    schema: dict[str, Any] = json.loads(reference.json_schema())
    assert schema["required"] == ["model", "data", "output"]
    assert set(schema["properties"]) == set(Recipe.model_fields)
    for definition in [schema, *schema["$defs"].values()]:
        assert definition["additionalProperties"] is False
    assert schema["$defs"]["Adapter"]["properties"]["rank"]["anyOf"][0]["exclusiveMinimum"] == 0
    assert schema["$defs"]["Model"]["properties"]["dtype"]["enum"] == [
        "auto", "float32", "bfloat16", "float16"]
