"""All that a run wrote down, read once: what a page is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lorafit.errors import UserError
from lorafit.json_files import read_object
from lorafit.report.glance import Glance, open_glance
from lorafit.report.logs import Damaged, Line, Log, is_number, steps_of
from lorafit.run_dir import RunDir

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Story:
    """A run. name: told apart from the other runs of a page. record, result, evaluation: empty
    where they are not written yet. keys: of the recipe, `section.key` to value."""

    name: str
    run: RunDir
    standing: Glance
    record: dict[str, Any]
    result: dict[str, Any]
    evaluation: dict[str, Any]
    lines: list[Line]
    samples: list[Line]
    recipe: str
    keys: dict[str, Any]

    @property
    def steps(self) -> list[Line]:
        return steps_of(self.lines)

    @property
    def evaluations(self) -> list[Line]:
        return [line for line in self.lines if is_number(line.get("held_out_loss"))]

    @property
    def notes(self) -> list[tuple[int, str]]:
        """Warnings and steps that were left out, each with its step."""
        said = [(line["step"], line.get("warning") or line.get("skipped")) for line in self.lines]
        return [(step, text) for step, text in said if isinstance(text, str)]

    @property
    def predicted(self) -> dict[str, Any]:
        """What was said of memory and time before the run; empty where nothing was."""
        return mapping(self.record.get("predicted"))

    @property
    def weights(self) -> Path | None:
        """The directory of the newest adapter: the result, or the newest checkpoint's."""
        if self.result and self.run.adapter.is_dir():
            return self.run.adapter
        return next(reversed(self.run.list_checkpoints()), None)


def read_stories(paths: list[Path]) -> list[Story]:
    """The runs of a page, in the order given. UserError for what is no run, is damaged, of a newer
    version, or named twice."""
    places = [path.resolve() for path in paths]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise UserError("is named twice", str(paths[i]), "leave one of them out")
    names = [place.name for place in places]
    return [_read(path, place.name if names.count(place.name) == 1 else
                  f"{place.parent.name}/{place.name}")
            for path, place in zip(paths, places, strict=True)]


def _read(path: Path, name: str) -> Story:
    standing = open_glance(path)
    run = RunDir(path)
    try:
        lines, samples = Log(run.metrics).all(), Log(run.samples).all()
        recipe = run.recipe.read_text(encoding="utf-8") if run.recipe.exists() else ""
        values = yaml.load(recipe, _LOADER)
    except (Damaged, OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"is damaged: {error}", str(path),
                        f"lorafit doctor {path} says what is, and what can be done") from None
    record, result, evaluation = (read_object(each) if each.exists() else {}
                                  for each in (run.record, run.result, run.evaluation))
    return Story(name, run, standing, record, result, evaluation, lines, samples, recipe,
                 _flat(values))


def _flat(values: object, prefix: str = "") -> dict[str, Any]:
    """`section.key` to value; a list is one value."""
    if not isinstance(values, Mapping) or (prefix and not values):
        return {prefix: values} if prefix else {}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def mapping(value: object) -> dict[str, Any]:
    """A value of somebody's JSON, where it is an object."""
    return value if isinstance(value, dict) else {}
