"""Verbs that show runs."""

from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli.app import Json, app

_RUN = typer.Argument(metavar="RUN", help="A run directory.", show_default=False)


@app.command()
def runs(
    directory: Annotated[Path, typer.Argument(
        metavar="[DIR]", help="A directory; runs are looked for in all below it.",
        show_default=False)] = Path("."),
    sort: Annotated[str, typer.Option(
        help="What rows are sorted by: time (the newest first), name, state, step, loss, held-out "
        "or speed.")] = "time",
    json_to: Json = None,
) -> None:
    """List the runs in a directory: state, step, losses, when and where each stopped.

    A run that is damaged, or of a newer lorafit, is a row that says so. Nothing is changed, and
    runs that go on are left alone. `lorafit follow` watches one of them.
    """
    from lorafit.cli.verbs import report as verbs

    verbs.runs(directory, sort, json_to)


@app.command()
def follow(run: Annotated[Path, _RUN]) -> None:
    """Watch a run from another terminal until it ends.

    Shows each step as it is written down, evaluations, warnings and sample answers. Ends with the
    run: with 0 when it finished or was stopped, with 3 when it was killed. Ctrl-C ends this view
    and leaves the run alone.
    """
    from lorafit.cli.verbs import report as verbs

    verbs.follow(run)


@app.command()
def report(
    paths: Annotated[list[Path], typer.Argument(
        metavar="RUN...", help="A run directory; several are drawn over each other.",
        show_default=False)],
    output: Annotated[Path, typer.Option(
        "--output", "-o", help="The page to write; it must not exist yet.")] = Path("report.html"),
    force: Annotated[bool, typer.Option(
        "--force", help="Replace the page, and plots of --png, where they exist.")] = False,
    tokens: Annotated[int | None, typer.Option(
        "--tokens", min=1, metavar="N", show_default=False,
        help="Measure the loss of every token of the kept held-out rows with the base and the "
        "adapter, show the N rows that changed most, and keep it in the run. Loads the model.",
    )] = None,
    png: Annotated[Path | None, typer.Option(
        "--png", metavar="DIR", show_default=False,
        help="Write the plots as PNG files into this directory too (needs matplotlib).")] = None,
) -> None:
    """Write a page about one run or several: curves, figures, layers, samples, recipes.

    One HTML file that needs nothing else: it loads nothing from anywhere. Also of a run that goes
    on. Without --tokens no model is loaded.
    """
    from lorafit.cli.verbs import report as verbs

    verbs.report(paths, output, force=force, tokens=tokens, png=png)
