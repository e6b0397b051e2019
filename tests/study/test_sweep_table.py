"""What a sweep makes of outcomes, and how it is drawn."""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lorafit.recipe.loading import load_recipe
from lorafit.study import sweep as sweeps
from lorafit.study.draw import Point, Series, chart
from lorafit.study.folder import StudyDir, Trial
from lorafit.study.outcome import Outcome
from lorafit.study.space import points, read_axes, recipes_of


class Told:
    """Hands out outcomes that are made up: losses of each point's seeds, None for diverged."""

    def __init__(self, losses: Sequence[Sequence[float | None]], held_out: str = "h") -> None:
        self.losses = [loss for of_point in losses for loss in of_point]
        self.held_out = held_out

    def run(self, trials: Sequence[Trial]) -> dict[str, Outcome]:
        return {trial.name: Outcome(
            trial.name, trial.seed, loss=loss, start_loss=3.0, step_s=0.1,
            held_out=self.held_out + (trial.name[:3] if self.held_out else ""),
            problem=None if loss is not None else "the gradient of step 3 is not finite\n    lower",
            diverged=loss is None) for trial, loss in zip(trials, self.losses, strict=False)}


@pytest.fixture
def planned(make_recipe: Callable[..., Any], tmp_path: Path) -> sweeps.Plan:
    """Ranks 2, 4 and 8, two seeds each."""
    recipe, folder = make_recipe(), StudyDir(tmp_path / "sweep")
    folder.path.mkdir()
    axes = read_axes(["adapter.rank=2,4,8"], is_random=False, seeds=2)
    chosen = points(axes, None, 0)
    return sweeps.plan(folder, recipe, ["adapter.rank"], chosen,
                       recipes_of(recipe, chosen, Path("r.yaml")), 2)


def test_the_best_has_the_lowest_mean_of_all_seeds(planned: sweeps.Plan) -> None:
    found = sweeps.run(planned, Told([(1.0, 1.2), (0.5, None), (1.0, 1.1)], ""))
    assert [row.settings["adapter.rank"] for row in found.rows] == [4, 8, 2]
    assert found.rows[0].state == "the gradient of step 3 is not finite"
    assert found.rows[1].loss.mean == pytest.approx(1.05)
    assert found.rows[1].loss.deviation == pytest.approx(math.sqrt(0.005))
    assert found.best_run.endswith("003-rank=8-seed-0")
    best = load_recipe(Path(found.best_recipe))
    assert (best.adapter.rank, best.training.seed) == (8, 0)
    assert any("1 further combination is within two standard errors" in each
               for each in found.remarks)
    page = (planned.folder.path / "sweep.md").read_text()
    assert "| 8 | 1.0500 | 0.0707 |" in page


def test_what_is_missing_is_counted_and_cannot_be_the_best(planned: sweeps.Plan) -> None:
    found = sweeps.run(planned, Told([(1.0, 1.2), (0.5,)]))
    assert found.missing == 3
    assert found.rows[0].state == "1 of 2 runs"
    assert found.best_run.endswith("001-rank=2-seed-0")


def test_losses_on_other_held_out_tokens_are_called_incomparable(planned: sweeps.Plan) -> None:
    losses = [(1.0, 1.2), (0.5, 0.6), (1.0, 1.1)]
    assert any("not comparable" in each for each in sweeps.run(planned, Told(losses)).remarks)
    assert not any("not comparable" in each
                   for each in sweeps.run(planned, Told(losses, "")).remarks)


def test_a_chart_shows_every_point_and_is_xml() -> None:
    drawn = chart("a < b", "learning rate", "loss", [
        Series("full & more", [Point(1e-4, 1.0, 0.1), Point(1e-3, 0.9), Point(1e-2, None)]),
        Series("rank 4", [Point(1e-3, 1.1), Point(1e-2, 90.0)])])
    root = ElementTree.fromstring(drawn)
    names = [each.tag.rpartition("}")[2] for each in root.iter()]
    assert names.count("circle") == 3
    assert names.count("polyline") == 1
    texts = {each.text for each in root.iter() if each.text}
    assert {"a < b", "full & more", "rank 4", "0.001"} <= texts
    across = [float(each.get("cx")) for each in root.iter() if each.tag.endswith("circle")]
    assert across[0] < across[1] == across[2]
    for few in ([], [Point(3, 1.0)], [Point(3, None)], [Point(-1, 1.0), Point(0, 1.0)]):
        ElementTree.fromstring(chart("few", "x", "y", [Series("a", few)]))
