"""A recipe file and `--set` overrides to a validated Recipe; every problem at once."""

import difflib
import glob
import os
import re
import stat
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lorafit.errors import Problem, UserError
from lorafit.recipe.reading import Document, KeyPath, parse_scalar, read_yaml
from lorafit.recipe.schema import Data, Recipe, Source
from lorafit.secrets import redacted, secret_in

MAX_RECIPE_BYTES = 1_000_000


def load_recipe(path: Path, overrides: typing.Sequence[str] = ()) -> Recipe:
    """Read, override and validate.

    Relative paths in the recipe are looked for in the working directory, then beside the recipe.
    UserError with every problem found, each with file and line (or the override) and a remedy.
    """
    document = read_yaml(_read_text(path), str(path))
    if document.problems:
        raise UserError(problems=document.problems)
    if document.values is None:
        raise UserError("the recipe is empty", str(path), "`lorafit init` writes a starter")
    if not isinstance(document.values, dict):
        raise UserError(
            "a recipe is a mapping of sections", f"{path}:1",
            f"write sections such as {', '.join(Recipe.model_fields)}",
        )
    places = {key: f"{path}:{line}" for key, line in document.lines.items()}
    return _with_paths_beside(_overridden(document, places, path, overrides), path.parent)


def override(recipe: Recipe, overrides: typing.Sequence[str], path: Path) -> Recipe:
    """A copy of a recipe, read from `path`, with `--set` overrides. UserError as `load_recipe`."""
    return _overridden(Document(recipe.model_dump()), {}, path, overrides)


def place_of(path: Path, *keys: str) -> str:
    """Where a key stands in a recipe: its file and line."""
    line = read_yaml(_read_text(path), str(path)).line_of(keys)
    return str(path) if line is None else f"{path}:{line}"


def _overridden(document: Document, places: dict[KeyPath, str], path: Path,
                overrides: typing.Sequence[str]) -> Recipe:
    for each in overrides:
        _apply_override(document, places, each)
    if problems := list(_secrets(document.values, places, path)):
        raise UserError(problems=problems)
    try:
        return Recipe.model_validate(document.values)
    except ValidationError as error:
        problems = [_problem(item, document, places, path)
                    for item in _of_the_member_meant(error.errors())]
        raise UserError(problems=_unique(problems)) from None


def dump_recipe(recipe: Recipe) -> str:
    """YAML of a recipe with every default spelled out; `load_recipe` reads it back equal."""
    return yaml.dump(recipe.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that would not be read back as it is, such as "1e5"."""


def _represent_text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    style = None if isinstance(parse_scalar(value), str) else "'"
    if any(break_ in value for break_ in "\x85\u2028\u2029\ufeff"):  # written raw otherwise
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)


def replace(recipe: Recipe, **sections: dict[str, Any]) -> Recipe:
    """A copy with some keys of some sections changed, validated again."""
    values = recipe.model_dump()
    for section, changes in sections.items():
        values[section].update(changes)
    return Recipe.model_validate(values)


def _read_text(path: Path) -> str:
    remedy = "give the path of a YAML recipe; `lorafit init` writes a starter"
    try:
        facts = path.stat()
        if stat.S_ISFIFO(facts.st_mode):  # opening it would wait for a writer, maybe for ever
            raise UserError("a pipe, which can be read only once", str(path),
                            "write its content to a file")
        if facts.st_size > MAX_RECIPE_BYTES:
            raise UserError("too large to be a recipe (over 1 MB)", str(path), remedy)
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"not UTF-8 text (byte {error.start})", str(path), "save the file as UTF-8"
        ) from None
    except FileNotFoundError:
        raise UserError("no such recipe", str(path), remedy) from None
    except (OSError, ValueError) as error:
        raise UserError(f"the recipe cannot be read: {error}", str(path), remedy) from None


def _apply_override(document: Document, places: dict[KeyPath, str], override: str) -> None:
    """Put `section.key=value` into the document; the value is YAML."""
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    where = f"--set {override}"
    if not equals or not all(keys):
        raise UserError("not of the form section.key=value", where,
                        "for example --set adapter.rank=8")
    value = read_yaml(text, where)
    if value.problems:
        raise UserError(problems=value.problems)
    target: Any = document.values
    for key in keys[:-1]:
        if target.get(key) is None:
            target[key] = {}
        target = target[key]
        if not isinstance(target, dict):
            raise UserError(f"{key} is a value, not a section", where,
                            "for example --set adapter.rank=8")
    target[keys[-1]] = value.values
    for place in [place for place in places if place[: len(keys)] == tuple(keys)]:
        del places[place]  # what the file said there is gone
    places[tuple(keys)] = where


def _secrets(values: Any, places: dict[KeyPath, str], path: Path,
             keys: KeyPath = ()) -> Iterator[Problem]:
    """Passwords and tokens among the values, which a run directory would keep for ever."""
    if isinstance(values, str) and (what := secret_in(values)):
        where = next((places[keys[:end]] for end in range(len(keys), 0, -1)
                      if keys[:end] in places), str(path))
        yield Problem(f"{'.'.join(map(str, keys))} holds what looks like {what}", redacted(where),
                      "take it out, and have it replaced where it was issued; the hub's token "
                      "belongs into HF_TOKEN or `hf auth login`, others into the environment too")
    items = values.items() if isinstance(values, dict) else (
        enumerate(values) if isinstance(values, list) else ())
    for key, value in items:
        yield from _secrets(value, places, path, (*keys, key))


def _of_the_member_meant(errors: typing.Sequence[Any]) -> list[Any]:
    """Without "must be a string" about a mapping whose keys have errors of their own."""
    return [
        error for error in errors
        if not (error["type"] == "string_type" and isinstance(error["input"], dict) and any(
            len(other["loc"]) > len(error["loc"])
            and other["loc"][: len(error["loc"]) - 1] == error["loc"][:-1] for other in errors
        ))
    ]


def _problem(error: Any, document: Document, places: dict[KeyPath, str], path: Path) -> Problem:
    """One pydantic error as a place, a sentence and a remedy."""
    keys: KeyPath = tuple(
        key for key in error["loc"] if _stands_in(document.values, error["loc"], key)
    )
    model = _model_at(keys[:-1])
    where = next(
        (places[keys[:end]] for end in range(len(keys), 0, -1) if keys[:end] in places), str(path)
    )
    dotted = ".".join(map(str, keys))
    if error["type"] == "extra_forbidden":
        known = list(model.model_fields) if model else []
        section = ".".join(map(str, keys[:-1]))
        what = f"unknown key {dotted}"
        return Problem(what, where, _nearest(str(keys[-1]), known, section, document))
    if error["type"] == "missing":
        missing = (*keys, error["loc"][-1])
        name = ".".join(map(str, missing))
        hint = _help_of(missing).removeprefix(f"{name}: ")
        return Problem(f"{name} is missing", where, f"add it: {hint}")
    if error["type"] == "value_error":
        what, _, remedy = str(error["ctx"]["error"]).rpartition("; ")
        what, remedy = (what, remedy) if what else (remedy, _help_of(keys))
        return Problem(f"{dotted}: {what}" if dotted else what, where, remedy)
    return Problem(f"{dotted}: {_sentence(error)}", where, _type_remedy(error) or _help_of(keys))


def _help_of(keys: KeyPath) -> str:
    """What a key is for, or which keys a section has."""
    if (section := _section_at(keys)) is not None:
        return f"`{'.'.join(map(str, keys)) or 'a recipe'}` has the keys " \
               f"{', '.join(section.model_fields)}"
    for end in range(len(keys), 0, -1):  # an item of a list has the help of the list
        owner = _model_at(keys[: end - 1])
        field = owner.model_fields.get(str(keys[end - 1])) if owner else None
        if field is not None and field.description:
            name = ".".join(map(str, keys[:end]))
            return f"{name}: {' '.join(field.description.split())}"
    return "see docs/recipe.md"


def _section_at(keys: KeyPath) -> type[BaseModel] | None:
    """The section that these keys lead to; None where they lead to a value."""
    if not keys:
        return Recipe
    owner = _model_at(keys[:-1])
    field = owner.model_fields.get(str(keys[-1])) if owner else None
    annotation = field.annotation if field else None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _stands_in(values: Any, loc: tuple[Any, ...], key: Any) -> bool:
    """Whether a step of pydantic's location is a key of the document.

    Locations also name the member of a union that was tried (`str`, `list[str]`, `Source`).
    """
    for step in loc:
        inside = isinstance(values, dict) and step in values
        inside = inside or (isinstance(values, list) and isinstance(step, int)
                            and step < len(values))
        if step is key:
            return inside
        if inside:
            values = values[step]
    return False


def _model_at(keys: KeyPath) -> type[BaseModel] | None:
    model: type[BaseModel] | None = Recipe
    for key in keys:
        if isinstance(key, int):  # an item of a list
            continue
        field = model.model_fields.get(str(key)) if model else None
        if field is None:
            return None
        model = next(_models_in(field.annotation), None)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Sections that a value of this type may be, or hold as items."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models_in(part)


def _nearest(key: str, known: list[str], section: str, document: Document) -> str:
    """The remedy for an unknown key: the nearest of its section, or the section it belongs to."""
    prefix = f"{section}." if section else ""
    if close := difflib.get_close_matches(key, known, 1, 0.6):
        return f"did you mean {prefix}{close[0]}?"
    for name in Recipe.model_fields:
        section_model = _model_at((name,))
        others = list(section_model.model_fields) if section_model else []
        if close := difflib.get_close_matches(key, others, 1, 0.85):
            return f"did you mean {name}.{close[0]}?"
    listed = ", ".join(known)
    return f"keys here: {listed}" if listed else "remove it"


def _sentence(error: Any) -> str:
    given = error.get("input")
    shown = f"{given!r}" if len(repr(given)) < 60 else f"{repr(given)[:57]}…"
    message = error["msg"][0].lower() + error["msg"][1:]
    message = message.replace("input should be", "must be")
    message = message.replace("a valid integer", "a whole number").replace("valid ", "")
    message = re.sub(r"a dictionary( or instance of \w+)?", "a mapping of keys", message)
    if error["type"] in ("too_short", "too_long"):
        limit = error["ctx"].get("min_length", error["ctx"].get("max_length"))
        message = f"must have {limit} items"
    return f"{message}, not {shown}"


def _type_remedy(error: Any) -> str:
    if error["type"] == "string_type" and isinstance(error.get("input"), int | float | bool):
        return "put the value in quotes"
    if error["type"] in ("int_type", "float_type") and isinstance(error.get("input"), str):
        return "write a plain number without quotes"
    if error["type"] == "literal_error":
        given = str(error.get("input"))
        choices = [c.strip(" '") for c in error["ctx"]["expected"].replace(" or ", ",").split(",")]
        if close := difflib.get_close_matches(given, choices, 1, 0.5):
            return f"did you mean {close[0]}?"
    return ""


def _unique(problems: list[Problem]) -> list[Problem]:
    """One problem a key: a union reports one error for each of its members; keep the first place
    but join what would have been accepted."""
    merged: dict[tuple[str, str], Problem] = {}
    for problem in problems:
        name, colon, what = problem.what.partition(": ")
        key = (problem.where, name if colon else problem.what)
        if key not in merged:
            merged[key] = problem
        elif colon and merged[key].what != problem.what:
            before = merged[key]
            accepted = what.rpartition(", not ")[0].removeprefix("must be ")
            head, comma, given = before.what.rpartition(", not ")
            if accepted and comma and accepted not in head:
                merged[key] = Problem(f"{head}, or {accepted}, not {given}", before.where,
                                      before.remedy or problem.remedy)
    return list(merged.values())


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            leaves.update(flat(value, f"{prefix}{key}."))
        else:
            leaves[prefix + key] = value
    return leaves


def with_paths(sources: Any, change: Callable[[str], str]) -> Any:
    """The value of `data.train` or `data.eval` with each path changed."""
    if isinstance(sources, list):
        return [with_paths(source, change) for source in sources]
    if isinstance(sources, Source):
        return sources.model_copy(update={"path": change(sources.path)})
    return None if sources is None else change(sources)


def _with_paths_beside(recipe: Recipe, folder: Path) -> Recipe:
    """Point relative paths that exist only beside the recipe there, and `~` to the home."""

    def beside(value: str) -> str:
        value = os.path.expanduser(value)
        if _exists(Path(value)) or not _exists(folder / value):
            return value
        return str(folder / value)

    template = recipe.data.chat_template
    if template is not None and "{" not in template:
        template = beside(template)
    data: Data = recipe.data.model_copy(update={
        "train": with_paths(recipe.data.train, beside),
        "eval": with_paths(recipe.data.eval, beside),
        "chat_template": template,
    })
    base = recipe.model.base
    if base != "tiny":
        base = beside(base)
    model = recipe.model.model_copy(update={"base": base})
    output = recipe.output.model_copy(update={"dir": os.path.expanduser(recipe.output.dir)})
    return recipe.model_copy(update={"data": data, "model": model, "output": output})


def _exists(path: Path) -> bool:
    """Whether there is such a file, or any that a pattern such as `data/*.jsonl` stands for."""
    return path.exists() or (glob.has_magic(str(path)) and any(glob.iglob(str(path))))
