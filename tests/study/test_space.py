"""What --over means, and what of it is refused before any run."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorafit.errors import UserError
from lorafit.study.space import Axis, name_of, points, read_axes, recipes_of


def axes(*texts: str, is_random: bool = False, seeds: int = 1) -> list[Axis]:
    return read_axes(texts, is_random=is_random, seeds=seeds)


def test_values_are_yaml_and_make_a_grid() -> None:
    read = axes("adapter.rank=4,16", "training.learning_rate=1e-4,3e-4",
                "adapter.target_modules=all-linear,[q_proj,v_proj]")
    assert [axis.values for axis in read] == [
        (4, 16), (1e-4, 3e-4), ("all-linear", ["q_proj", "v_proj"])]
    grid = points(read, None, 0)
    assert len(grid) == 8
    assert grid[0] == {"adapter.rank": 4, "training.learning_rate": 1e-4,
                       "adapter.target_modules": "all-linear"}
    assert grid[1]["adapter.target_modules"] == ["q_proj", "v_proj"]


def test_ranges_are_drawn_log_uniformly_the_same_for_the_same_seed() -> None:
    read = axes("training.learning_rate=1e-5..1e-2", "adapter.rank=1..64",
                "training.batch_size=8,16", is_random=True)
    drawn = points(read, 300, 7)
    assert drawn == points(read, 300, 7) != points(read, 300, 8)
    rates = [point["training.learning_rate"] for point in drawn]
    assert all(1e-5 <= rate <= 1e-2 for rate in rates)
    below = sum(rate < 10**-3.5 for rate in rates)  # half of the logarithm's range
    assert abs(below - 150) < 4 * math.sqrt(300 / 4)
    assert all(isinstance(point["adapter.rank"], int) and 1 <= point["adapter.rank"] <= 64
               for point in drawn)
    assert {point["training.batch_size"] for point in drawn} == {8, 16}


def test_no_combination_is_drawn_twice() -> None:
    drawn = points(axes("adapter.rank=1,2,4", is_random=True), 50, 0)
    assert sorted(point["adapter.rank"] for point in drawn) == [1, 2, 4]


@pytest.mark.parametrize(("text", "told"), [
    ("adapter.rank", "not of the form"), ("rank=4,8", "not of the form"),
    ("adapter.rank=", "not of the form"), ("adapter.rank=4,4", "names a value twice"),
    ("adapter.rank=[4", "not valid YAML"), ("output.dir=a,b", "cannot be swept over"),
    ("data.eval=a.jsonl,b.jsonl", "cannot be swept over"), ("evaluation.rows=1,2", "changes no"),
    ("training.learning_rate=1e-5..1e-3", "a grid has no ranges"),
])
def test_what_is_no_axis_is_refused_with_its_place(text: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as refused:
        axes(text)
    assert f"--over {text}" in str(refused.value)


@pytest.mark.parametrize("bounds", ["0..1", "3..1", "-1..2", "1..1"])
def test_a_range_that_has_no_logarithm_is_refused(bounds: str) -> None:
    with pytest.raises(UserError, match="a range goes from a number above 0"):
        axes(f"training.weight_decay={bounds}", is_random=True)


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(UserError) as refused:
        axes("adapter.rank", "output.dir=a", "training.seed=1,2", seeds=3)
    assert len(refused.value.problems) == 3
    with pytest.raises(UserError, match="given twice"):
        axes("adapter.rank=4", "adapter.rank=8")


def test_every_combination_is_validated_as_a_recipe(make_recipe: Callable[..., Any]) -> None:
    recipe = make_recipe()
    grid = points(axes("adapter.rank=4,0", "training.batch_size=4,1", "adapter.rnk=2"), None, 0)
    with pytest.raises(UserError) as refused:
        recipes_of(recipe, grid, Path("recipe.yaml"))
    told = [str(problem) for problem in refused.value.problems]
    assert len(told) == len(set(told)) == 3
    assert any("--over adapter.rank=0" in each and "greater than 0" in each for each in told)
    assert any("micro_batch_size 2 is larger than batch_size 1" in each for each in told)
    assert any("did you mean adapter.rank?" in each for each in told)


def test_names_are_names_of_files() -> None:
    name = name_of(3, {"adapter.target_modules": ["q_proj", "../x"], "data.train": "/a b/" * 40}, 5)
    assert "/" not in name
    assert name.startswith("003-target_modules=")
    assert name.endswith("-seed-5")
    assert len(name) < 110
