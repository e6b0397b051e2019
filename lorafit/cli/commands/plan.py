"""The verb that tells what a recipe will need."""

from typing import Annotated

import typer

from lorafit.cli.app import Overrides, RecipePath, app


@app.command()
def plan(
    recipe_path: RecipePath,
    overrides: Overrides = None,
    gpu_memory: Annotated[str | None, typer.Option(
        "--gpu-memory", metavar="SIZE", show_default=False,
        help="Plan for GPUs with so much memory, such as 24GB, in place of this machine.")] = None,
    gpu: Annotated[str | None, typer.Option(
        "--gpu", metavar="NAME", show_default=False,
        help="Their name, such as 'RTX 4090' or A100: the time follows from its data "
        "sheet.")] = None,
    devices: Annotated[int | None, typer.Option(
        "--devices", min=1, show_default=False,
        help="How many of them; all of this machine's, or 1, if left out.")] = None,
    measure: Annotated[bool, typer.Option(
        "--measure", help="Load the base and take its own loss on a sample of the rows, in place "
        "of the upper bound for what the data carries.")] = False,
    calibrate: Annotated[bool, typer.Option(
        "--calibrate", help="Measure first, in some seconds, how fast this device computes, and "
        "keep it for later plans and runs.")] = False,
    price: Annotated[float | None, typer.Option(
        "--price-per-hour", min=0, show_default=False,
        help="Of the whole machine: adds what the run costs.")] = None,
    sources: Annotated[bool, typer.Option(
        "--sources", help="Print the formulas and where they are from, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Tell what a recipe will need: memory, tokens, capacity, time; and what speaks against it.

    Reads config.json, headers of weights and a sample of the rows; loads no weights. Exit code 1
    when it will not fit.
    """
    from lorafit.cli.verbs import plan as verbs

    verbs.plan(recipe_path, overrides or [], gpu_memory=gpu_memory, gpu=gpu, devices=devices,
               measure=measure, calibrate=calibrate, price=price, sources=sources, as_json=as_json)
