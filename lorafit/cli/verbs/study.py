"""What `lorafit sweep` and `lorafit regret` do."""

import time
from pathlib import Path
from typing import Any

from lorafit.cli.before import check_cheaply, refuse_taken_json, settle_hub
from lorafit.data.local_paths import with_absolute_paths
from lorafit.errors import MachineError, UserError
from lorafit.recipe.loading import load_recipe
from lorafit.recipe.schema import Recipe
from lorafit.run_dir import RunDir, write_json, write_text
from lorafit.run_lock import RunLock
from lorafit.study.folder import StudyDir, asked_of, begin, refuse_other


def sweep(recipe_path: Path, overrides: list[str], over: list[str], random: int | None, seeds: int,
          output: Path | None, jobs: int, budget_s: float | None, json_to: Path | None) -> None:
    from lorafit.study import space

    refuse_taken_json(json_to)
    recipe = load_recipe(recipe_path, overrides)
    _refuse_without_held_out(recipe, recipe_path)
    axes = space.read_axes(over, is_random=random is not None, seeds=seeds)
    points = space.points(axes, random, recipe.training.seed)
    recipes = space.recipes_of(recipe, points, recipe_path)
    for each in space.unique_inputs(recipes):
        check_cheaply(each, RunDir(Path(each.output.dir)), resume=True)
    folder = StudyDir(output or Path(f"{recipe.output.dir}-sweep"))
    asked = asked_of("sweep", with_absolute_paths(recipe), over={
        axis.key: axis.as_text() for axis in axes}, random=random, seeds=seeds)
    refuse_other(folder, asked, dated=recipe.data.date is not None)
    settle_hub(recipe)

    from lorafit.cli import show_study
    from lorafit.study import sweep as sweeps
    from lorafit.study.runs import Runner

    date = begin(folder, asked)
    with RunLock(RunDir(folder.path)):
        search = sweeps.plan(folder, recipe, [axis.key for axis in axes], points,
                             [_dated(with_absolute_paths(each), date) for each in recipes], seeds)
        watcher = show_study.Progress(json_to, len(search.trials))
        watcher.begin(f"{len(points)} combinations × {seeds} seed{'s' if seeds > 1 else ''}: "
                      f"{len(search.trials)} runs in {folder.path}")
        found = sweeps.run(search, Runner(folder, jobs, _deadline_s(budget_s), watcher))
    show_study.either(json_to, found, show_study.sweep)
    _refuse_empty(folder, any(row.loss for row in found.rows) or found.missing > 0)


def regret(recipe_path: Path, overrides: list[str], ranks: str, seeds: int, steps: int | None,
           output: Path | None, jobs: int, budget_s: float | None, keep: bool,
           json_to: Path | None) -> None:
    refuse_taken_json(json_to)
    if steps is not None:
        overrides = [*overrides, "training.epochs=null", f"training.steps={steps}"]
    recipe = load_recipe(recipe_path, overrides)
    _refuse_without_held_out(recipe, recipe_path)
    wanted = _ranks(ranks)
    check_cheaply(recipe, RunDir(Path(recipe.output.dir)), resume=True)
    from lorafit.study import regret as regrets

    # Everything that can be refused is, before libraries are loaded; the rule needs the base.
    regrets.arms_of(recipe, recipe_path, wanted, {"model_type": "", "hidden_size": None})
    folder = StudyDir(output or Path(f"{recipe.output.dir}-regret"))
    asked = asked_of("regret", with_absolute_paths(recipe), ranks=wanted, seeds=seeds)
    refuse_other(folder, asked, dated=recipe.data.date is not None)
    settle_hub(recipe)

    from lorafit.cli import show_study
    from lorafit.study import pages
    from lorafit.study.runs import Runner

    rule = _rule_facts(recipe)
    recipe = _dated(with_absolute_paths(recipe), begin(folder, asked))
    arms = regrets.arms_of(recipe, recipe_path, wanted, rule)
    study = regrets.Asked(folder, recipe, arms, seeds)
    with RunLock(RunDir(folder.path)):
        watcher = show_study.Progress(json_to, study.fewest_runs)
        watcher.begin(f"{len(arms)} arms: at least {study.fewest_runs} runs in {folder.path}; "
                      "usually two or three more for each arm whose best rate is not in the middle")
        runner = Runner(folder, jobs, _deadline_s(budget_s), watcher)
        found = regrets.run(study, runner, prune=not keep)
        write_json(folder.path / "regret.json", show_study.as_values(found))
        write_text(folder.path / "regret.svg", pages.regret_plot(found))
        write_text(folder.path / "regret.md", pages.regret_page(found, "regret.svg"))
    show_study.either(json_to, found, show_study.regret)
    _refuse_empty(folder, any(arm.loss for arm in found.arms) or runner.is_out_of_time)


def _refuse_empty(folder: StudyDir, says_something: bool) -> None:
    """MachineError where every run is over and none has a loss."""
    if not says_something:
        raise MachineError(f"{folder.path}: no run has a held-out loss; the table says why\n    "
                           "logs/ has what each run printed; the same command tries again what "
                           "did not diverge")


def _deadline_s(budget_s: float | None) -> float | None:
    return None if budget_s is None else time.perf_counter() + budget_s


def _dated(recipe: Recipe, date: str) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"date": date})})


def _ranks(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise UserError(f"{text!r} is no list of ranks", "--ranks",
                        "write whole numbers above 0, for example 1,4,16,64")
    ranks = [int(word) for word in words]
    return sorted(set(ranks))


def _refuse_without_held_out(recipe: Recipe, path: Path) -> None:
    if recipe.data.eval is None and not recipe.data.eval_fraction:
        raise UserError("runs are compared by their loss on held-out rows, and the recipe holds "
                        "none out", str(path), "name a file in data.eval, or hold out a part of "
                        "the training rows: --set data.eval_fraction=0.05")


def _rule_facts(recipe: Recipe) -> dict[str, Any]:
    from lorafit.model.base import load_config

    config = load_config(recipe.model).get_text_config()
    return {"model_type": config.model_type,
            "hidden_size": getattr(config, "hidden_size", None)}
