"""The combinations that a sweep tries: keys of the recipe, and values or ranges of each."""

import itertools
import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.errors import Problem, UserError
from lorafit.recipe.loading import override
from lorafit.recipe.reading import parse_scalar, read_yaml
from lorafit.recipe.schema import Recipe

MAX_RUNS = 10_000
_RANGE = re.compile(r"([^.]+(?:\.[^.]+)?)\.\.([^.]+(?:\.[^.]+)?)")
# Keys over which losses cannot be compared, or which change no run; with the reason.
_NOT_OVER = {
    "output": "each run has its own directory",
    "evaluation": "it changes no training",
    "data.eval": "losses on other held-out rows cannot be compared",
    "data.eval_fraction": "losses on other held-out rows cannot be compared",
    "data.max_eval_rows": "losses on other held-out rows cannot be compared",
}

Point = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """One key and what it may be: values, or a range that is drawn from log-uniformly."""

    key: str
    values: tuple[Any, ...] = ()
    bounds: tuple[float, float] | None = None

    def as_text(self) -> str:
        if self.bounds is not None:
            return f"{self.bounds[0]}..{self.bounds[1]}"
        return ",".join(json.dumps(value, ensure_ascii=False) for value in self.values)

    def draw(self, generator: random.Random) -> Any:
        """A value; of a range three digits of it, whole where both ends are."""
        if self.bounds is None:
            return generator.choice(self.values)
        low, high = self.bounds
        drawn = math.exp(generator.uniform(math.log(low), math.log(high)))
        if isinstance(low, int) and isinstance(high, int):
            return min(high, max(low, round(drawn)))
        return min(high, max(low, float(f"{drawn:.3g}")))


def read_axes(texts: Sequence[str], *, is_random: bool, seeds: int) -> list[Axis]:
    """Of the command line's `--over KEY=VALUES`. UserError with everything wrong about them."""
    axes: list[Axis] = []
    problems: list[Problem] = []
    for text in texts:
        try:
            axis = _read_axis(text, is_random)
            if any(axis.key == other.key for other in axes):
                raise UserError("is given twice", f"--over {text}", "name all values in one --over")
            if axis.key == "training.seed" and seeds > 1:
                raise UserError("--seeds already varies it", f"--over {text}", "leave one out")
            axes.append(axis)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems=problems)
    return axes


def _read_axis(text: str, is_random: bool) -> Axis:
    where = f"--over {text}"
    key, equals, values = text.partition("=")
    key = key.strip()
    if not equals or not values.strip() or not all(key.split(".")) or "." not in key:
        raise UserError("not of the form section.key=value,value,…", where,
                        "for example --over adapter.rank=4,16,64")
    for name, why in _NOT_OVER.items():
        if key == name or key.startswith(f"{name}."):
            raise UserError(f"{key} cannot be swept over: {why}", where, "leave it out")
    if match := _RANGE.fullmatch(values.strip()):
        bounds = [parse_scalar(end.strip()) for end in match.groups()]
        if all(isinstance(end, int | float) and not isinstance(end, bool) for end in bounds):
            return _range(key, bounds[0], bounds[1], where, is_random)
    document = read_yaml(f"[{values}]", where)  # as YAML, so that values may be lists themselves
    if document.problems:
        raise UserError(problems=document.problems)
    found = document.values
    if not found or any(value in found[:number] for number, value in enumerate(found)):
        raise UserError("names a value twice" if found else "names no value", where,
                        "name each value once")
    return Axis(key, tuple(found))


def _range(key: str, low: float, high: float, where: str, is_random: bool) -> Axis:
    if not is_random:
        raise UserError("a grid has no ranges", where,
                        "name the values, or draw from the range with --random N")
    if not (math.isfinite(high) and 0 < low < high):
        raise UserError("a range goes from a number above 0 to a larger one, since it is drawn "
                        "from log-uniformly", where, "for example 1e-5..1e-3")
    return Axis(key, bounds=(low, high))


def points(axes: Sequence[Axis], draws: int | None, seed: int) -> list[Point]:
    """The grid, the last axis varying fastest; or so many random draws, fewer where that many
    different ones were not found."""
    size = math.prod(len(axis.values) for axis in axes) if draws is None else draws
    if size > MAX_RUNS:
        raise UserError(f"{size:,} combinations are too many", "--over", "name fewer values, or "
                        "draw some with --random N")
    if draws is None:
        return [dict(zip([axis.key for axis in axes], values, strict=True))
                for values in itertools.product(*(axis.values for axis in axes))]
    generator = random.Random(seed)
    found: list[Point] = []
    for _ in range(20 * draws):
        point = {axis.key: axis.draw(generator) for axis in axes}
        if point not in found:
            found.append(point)
        if len(found) == draws:
            break
    return found


def recipes_of(recipe: Recipe, chosen: Sequence[Point], path: Path) -> list[Recipe]:
    """The recipe of each point. UserError with what is wrong with any of them, each thing once."""
    recipes, problems = [], []
    for point in chosen:
        try:
            recipes.append(override(recipe, overrides_of(point), path))
        except UserError as error:
            problems += [Problem(problem.what, problem.where.replace("--set ", "--over ", 1),
                                 problem.remedy) for problem in error.problems]
    if problems:
        raise UserError(problems=list(dict.fromkeys(problems)))
    return recipes


def overrides_of(point: Point) -> list[str]:
    """As --set takes them."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in point.items()]


def unique_inputs(recipes: Sequence[Recipe]) -> Iterator[Recipe]:
    """One recipe of those with the same model and data sections, which are all that is read."""
    seen = []
    for recipe in recipes:
        if (inputs := (recipe.model, recipe.data)) not in seen:
            seen.append(inputs)
            yield recipe


def name_of(number: int, point: Point, seed: int) -> str:
    """Of a run: its place in the order, and its settings as far as a file name may hold them."""
    settings = "-".join(f"{key.rpartition('.')[2]}={value}" for key, value in point.items())
    readable = re.sub(r"[^\w.=+-]+", "_", settings, flags=re.ASCII)[:80]
    return f"{number:03d}-{readable}-seed-{seed}"
