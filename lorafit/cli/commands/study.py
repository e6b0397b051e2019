"""Verbs that answer a question with many runs."""

from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli.app import Json, Overrides, RecipePath, app
from lorafit.cli.durations import duration_s

Jobs = Annotated[int, typer.Option(
    "--jobs", min=1, help="Runs at a time; where there are several GPUs, each gets one.")]
Directory = Annotated[Path | None, typer.Option(
    "--output", "-o", metavar="DIR", show_default=False,
    help="Directory of the study; output.dir with the verb's name behind it if left out. One that "
    "holds the same study goes on.")]
Budget = Annotated[str | None, typer.Option(
    "--budget", metavar="TIME", show_default=False,
    help="End after this long (45m, 2h) with what there is; what is under way is committed, and "
    "the same command goes on.")]


@app.command()
def sweep(
    recipe_path: RecipePath,
    over: Annotated[list[str], typer.Option(
        "--over", metavar="KEY=V1,V2,…", show_default=False,
        help="Values to try of a key of the recipe, for example adapter.rank=4,16,64; with "
        "--random also a range such as training.learning_rate=1e-5..1e-3, drawn log-uniformly. "
        "Repeatable.")],
    overrides: Overrides = None,
    random: Annotated[int | None, typer.Option(
        "--random", min=1, metavar="N", show_default=False,
        help="Draw N combinations in place of the whole grid; training.seed decides "
        "which.")] = None,
    seeds: Annotated[int, typer.Option(
        min=1, help="Runs of each combination, with training.seed and the seeds behind it.")] = 1,
    output: Directory = None,
    jobs: Jobs = 1,
    budget: Budget = None,
    json_to: Json = None,
) -> None:
    """Train a recipe with every combination of some keys' values, and compare held-out losses.

    Each combination is a run as `lorafit train` makes it. The sweep can be ended or killed at any
    time: the same command goes on. Writes a table, a plot and the best combination as a recipe.
    """
    from lorafit.cli.verbs import study as verbs

    verbs.sweep(recipe_path, overrides or [], over, random, seeds, output, jobs,
                None if budget is None else duration_s(budget, "--budget"), json_to)


@app.command()
def regret(
    recipe_path: RecipePath,
    overrides: Overrides = None,
    ranks: Annotated[str, typer.Option(
        metavar="R,R,…", help="Ranks that are compared with full fine-tuning.")] = "1,4,16,64",
    seeds: Annotated[int, typer.Option(
        min=1, help="Seeds at each one's best learning rate.")] = 3,
    steps: Annotated[int | None, typer.Option(
        min=1, show_default=False,
        help="Steps of every run; the recipe's if left out.")] = None,
    output: Directory = None,
    jobs: Jobs = 1,
    budget: Budget = None,
    keep: Annotated[bool, typer.Option(
        "--keep", help="Keep weights and checkpoints of every run; full fine-tuning leaves a whole "
        "model each.")] = False,
    json_to: Json = None,
) -> None:
    """Measure how much LoRA loses against full fine-tuning on your model, data and budget.

    Short, equal runs of full fine-tuning and of LoRA at several ranks, each at its own best
    learning rate, with several seeds: a table, a plot and one sentence. Can be ended or killed at
    any time: the same command goes on.
    """
    from lorafit.cli.verbs import study as verbs

    verbs.regret(recipe_path, overrides or [], ranks, seeds, steps, output, jobs,
                 None if budget is None else duration_s(budget, "--budget"), keep, json_to)
