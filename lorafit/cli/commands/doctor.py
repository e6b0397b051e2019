"""The verb that looks for what is wrong."""

from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli.app import Json, app


@app.command()
def doctor(
    run: Annotated[Path | None, typer.Argument(
        show_default=False, help="A run directory to verify file by file; this machine and what is "
        "installed, if left out.")] = None,
    ranks: Annotated[bool, typer.Option(
        "--ranks", help="Let two processes meet as well, over sockets of this machine. Without it "
        "no socket is opened.")] = False,
    json_to: Json = None,
) -> None:
    """Find out what is wrong with this machine, or with a run directory.

    Without RUN: what is installed is tried, not only listed: forward and backward passes on each
    device beside float64, kernels, bitsandbytes, a step of training, disks, memory, environment
    variables. Exit code 3 when something does not work.

    With RUN: every file is read, also while the run goes on. Exit code 5 when something is damaged.
    Nothing is changed either way.
    """
    from lorafit.cli.verbs import doctor as verbs

    verbs.doctor(run, ranks=ranks, json_to=json_to)
