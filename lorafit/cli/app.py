"""The command line's application, and the arguments that several verbs have."""

import time
from pathlib import Path
from typing import Annotated

import typer

from lorafit import __version__
from lorafit.errors import EXIT_CODES

STARTED_S = time.perf_counter()

_EXITS = "  ".join(f"{code}: {meaning}." for code, meaning in EXIT_CODES.items())
app = typer.Typer(
    help="LoRA fine-tuning driven by YAML recipes.",
    epilog=f"Exit codes.  {_EXITS}",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipePath = Annotated[Path, typer.Argument(help="A YAML recipe.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Option(
    "--set", metavar="SECTION.KEY=VALUE", show_default=False,
    help="Override a key of the recipe, for example --set adapter.rank=8. Repeatable.")]
Trained = Annotated[Path, typer.Argument(
    metavar="RUN|ADAPTER", show_default=False,
    help="A run directory, one of its checkpoints, or an adapter directory.")]
Base = Annotated[str | None, typer.Option(
    help="Base model to use in place of the one that the adapter names.", show_default=False)]
Output = Annotated[Path | None, typer.Option(
    "--output", "-o", help="Directory to write; it must not exist yet.", show_default=False)]
Json = Annotated[Path | None, typer.Option(
    "--json", metavar="FILE", show_default=False,
    help="Write the figures as JSON instead; - for the standard output.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
          ) -> None:
    if version:
        print(f"lorafit {__version__}")
        raise typer.Exit
