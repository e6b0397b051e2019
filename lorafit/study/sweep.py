"""A sweep: every combination as a run, and a table with the best first."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from lorafit.recipe.loading import dump_recipe
from lorafit.recipe.schema import Recipe
from lorafit.run_dir import write_json, write_text
from lorafit.study import draw
from lorafit.study.folder import StudyDir, Trial
from lorafit.study.noise import Spread, spread
from lorafit.study.outcome import Outcome
from lorafit.study.pages import markdown_table
from lorafit.study.runs import Runner
from lorafit.study.space import Point, name_of


@dataclass(frozen=True)
class Plan:
    """What a sweep runs. recipes: of each point. trials: of each point one a seed, in order."""

    folder: StudyDir
    recipe: Recipe
    keys: list[str]
    points: Sequence[Point]
    recipes: Sequence[Recipe]
    seeds: int
    trials: list[Trial]

    def of_point(self, number: int) -> list[Trial]:
        return self.trials[number * self.seeds : (number + 1) * self.seeds]


@dataclass(frozen=True)
class Row:
    """One combination. loss: None where no seed has one. state: why seeds are missing."""

    settings: Point
    runs: list[str]
    losses: dict[int, float]
    loss: Spread | None
    start_loss: float | None
    step_s: float | None
    peak_memory_bytes: int | None
    trained_parameters: int | None
    state: str = ""


@dataclass(frozen=True)
class Sweep:
    """The whole result, best rows first. missing: runs that are not over."""

    directory: str
    keys: list[str]
    rows: list[Row]
    seeds: int
    runs: int
    missing: int
    best_run: str | None
    best_recipe: str | None
    remarks: list[str] = field(default_factory=list)


def plan(folder: StudyDir, recipe: Recipe, keys: list[str], points: Sequence[Point],
         recipes: Sequence[Recipe], seeds: int) -> Plan:
    """The trials of each point, in its order."""
    trials = []
    for number, (point, each) in enumerate(zip(points, recipes, strict=True), start=1):
        for seed in range(each.training.seed, each.training.seed + seeds):
            training = each.training.model_copy(update={"seed": seed})
            trials.append(folder.trial(name_of(number, point, seed),
                                       each.model_copy(update={"training": training})))
    return Plan(folder, recipe, keys, points, recipes, seeds, trials)


def run(planned: Plan, runner: Runner) -> Sweep:
    """Run what is not over yet; write the table, the plot and the best recipe."""
    found = _result(planned, runner.run(planned.trials))
    folder = planned.folder.path
    write_json(folder / "sweep.json", as_values(found))
    write_text(folder / "sweep.md", page(found))
    if (drawn := plot(found)) is not None:
        write_text(folder / "sweep.svg", drawn)
    return found


def _result(planned: Plan, outcomes: dict[str, Outcome]) -> Sweep:
    rows = [_row(planned, number, outcomes) for number in range(len(planned.points))]
    best = None
    whole = [number for number, row in enumerate(rows) if len(row.losses) == planned.seeds]
    if whole:
        best = min(whole, key=lambda number: _mean(rows[number]))
    folder, best_recipe = planned.folder, None
    if best is not None:
        chosen = planned.recipes[best]
        output = chosen.output.model_copy(update={"dir": str(folder.path.absolute() / "best")})
        best_recipe = folder.path / "best.yaml"
        write_text(best_recipe, dump_recipe(chosen.model_copy(update={"output": output})))
    return Sweep(
        str(folder.path), planned.keys, sorted(rows, key=_mean), planned.seeds,
        len(planned.trials), len(planned.trials) - len(outcomes),
        None if best is None else str(folder.run(planned.of_point(best)[0].name).path),
        None if best_recipe is None else str(best_recipe),
        _remarks(rows, best, list(outcomes.values()), planned.seeds))


def _mean(row: Row) -> float:
    return row.loss.mean if row.loss else float("inf")


def _row(planned: Plan, number: int, outcomes: dict[str, Outcome]) -> Row:
    trials = planned.of_point(number)
    known = [outcomes[trial.name] for trial in trials if trial.name in outcomes]
    losses = {each.seed: each.loss for each in known if each.loss is not None}
    told = [each.problem.splitlines()[0] for each in known if each.problem]
    if not told and len(known) < len(trials):
        told = [f"{len(known)} of {len(trials)} runs"]
    starts = [each.start_loss for each in known if each.start_loss is not None]
    if not told and losses and starts and min(losses.values()) > max(starts):
        told = ["above the loss before training"]
    times = [each.step_s for each in known if each.step_s is not None]
    memory = [each.peak_memory_bytes for each in known if each.peak_memory_bytes]
    return Row(
        planned.points[number], [trial.name for trial in trials], losses,
        spread(list(losses.values())) if losses else None, starts[0] if starts else None,
        median(times) if times else None, max(memory) if memory else None,
        next((each.trained_parameters for each in known if each.trained_parameters), None),
        "; ".join(dict.fromkeys(told)))


def _remarks(rows: Sequence[Row], best: int | None, outcomes: Sequence[Outcome],
             seeds: int) -> list[str]:
    remarks = []
    of_seed: dict[int, set[str]] = {}
    for outcome in outcomes:
        if outcome.held_out:
            of_seed.setdefault(outcome.seed, set()).add(outcome.held_out)
    if any(len(digests) > 1 for digests in of_seed.values()):
        remarks.append("combinations were evaluated on different held-out tokens (another "
                       "tokenizer, template, length or hold-out): their losses are not comparable")
    if best is None:
        return remarks
    spread_of_best = rows[best].loss
    if seeds == 1 and len(rows) > 1:
        remarks.append("one seed a combination: how far apart losses must be to mean something is "
                       "not known; --seeds 3 tells")
    elif spread_of_best is not None and spread_of_best.deviation is not None:
        near = [row for number, row in enumerate(rows) if number != best and row.loss
                and len(row.losses) == seeds
                and row.loss.mean - spread_of_best.mean < _apart(spread_of_best, row.loss)]
        if near:
            remarks.append(f"{len(near)} further combination{'s are' if len(near) > 1 else ' is'} "
                           "within two standard errors of the best: these seeds do not tell them "
                           "apart")
    return remarks


def _apart(one: Spread, other: Spread) -> float:
    """Two standard errors of the difference of two means."""
    variances = [(each.deviation or 0.0) ** 2 / each.seeds for each in (one, other)]
    return 2 * sum(variances) ** 0.5


def headings(found: Sweep) -> list[str]:
    return [*found.keys, "held-out loss", "± over seeds", "s a step", "peak memory",
            "trained parameters", ""]


def table_rows(found: Sweep) -> list[list[str]]:
    """A list of cells a combination, best first."""
    return [[
        *(_shown(row.settings[key]) for key in found.keys),
        f"{row.loss.mean:.4f}" if row.loss else "",
        f"{row.loss.deviation:.4f}" if row.loss and row.loss.deviation is not None else "",
        f"{row.step_s:.3f}" if row.step_s else "",
        f"{row.peak_memory_bytes / 1e9:.2f} GB" if row.peak_memory_bytes else "",
        f"{row.trained_parameters:,}" if row.trained_parameters else "", row.state,
    ] for row in found.rows]


def page(found: Sweep) -> str:
    """The table as Markdown."""
    lines = [*markdown_table(headings(found), table_rows(found))]
    if plot(found) is not None:
        lines += ["", "![Held-out loss of each combination](sweep.svg)"]
    if found.remarks:
        lines += ["", *(f"- Note: {remark}." for remark in found.remarks)]
    return "\n".join(lines) + "\n"


def plot(found: Sweep) -> str | None:
    """Held-out loss against the key that is a number (the learning rate where it is one of them),
    a line for each setting of the others. None where no key is a number."""
    numeric = [key for key in found.keys if all(
        isinstance(row.settings[key], int | float) and not isinstance(row.settings[key], bool)
        for row in found.rows)]
    if not numeric:
        return None
    across = "training.learning_rate" if "training.learning_rate" in numeric else max(
        numeric, key=lambda key: len({row.settings[key] for row in found.rows}))
    is_grid = len({tuple(map(str, row.settings.values())) for row in found.rows}) > len(
        {row.settings[across] for row in found.rows})
    lines: dict[str, list[draw.Point]] = {}
    for row in found.rows:
        others = ", ".join(f"{key.rpartition('.')[2]} {_shown(row.settings[key])}"
                           for key in found.keys if key != across)
        lines.setdefault(others if is_grid else "runs", []).append(draw.Point(
            row.settings[across], row.loss.mean if row.loss else None,
            (row.loss.deviation or 0.0) if row.loss else 0.0))
    return draw.chart("sweep", across, "held-out loss, nats a token",
                      [draw.Series(name, at) for name, at in sorted(lines.items())])


def as_values(found: Sweep) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(found)


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
