"""Malformed recipes and data that were written by hand, after what users of other tools report.

tests/malformed/recipes/NAME.yaml is a recipe beside good rows, tests/malformed/data/NAME a file of
rows under a good recipe. tests/malformed/places.json says what the message must name.
"""

import json
from pathlib import Path

from reliability.malformed.case import Case, with_recipe, with_rows

FOLDER = Path(__file__).parents[3] / "tests" / "malformed"


def recipes() -> dict[str, Case]:
    """By file name."""
    places = _places("recipes")
    return {path.name: with_recipe(path.read_bytes(), places[path.name])
            for path in sorted((FOLDER / "recipes").iterdir())}


def data() -> dict[str, Case]:
    """By file name. What stands before a dash in the name is the format that the recipe names."""
    places = _places("data")
    cases = {}
    for path in sorted((FOLDER / "data").iterdir()):
        form, dash, _ = path.name.partition("-")
        setting = ("--set", f"data.format={form}") if dash else ()
        cases[path.name] = with_rows({path.name: path.read_bytes()}, places[path.name], path.name,
                                     *setting)
    return cases


def _places(which: str) -> dict[str, str]:
    found: dict[str, str] = json.loads((FOLDER / "places.json").read_text(encoding="utf-8"))[which]
    return found
