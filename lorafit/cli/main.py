"""`lorafit VERB …`: arguments in, exit code out."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from lorafit import __version__
from lorafit.cli import stdio
from lorafit.errors import EXIT_CODES, LorafitError

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


@app.command()
def train(
    recipe_path: RecipePath,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(
        "--resume", help="Go on from the newest intact checkpoint of the run.")] = False,
    processes: Annotated[int | None, typer.Option(
        "--num-processes", min=1, show_default=False,
        help="Ranks to train on; all GPUs, or 1 on a CPU, if left out.")] = None,
    smoke: Annotated[bool, typer.Option(
        "--smoke", help="Run the recipe on a shrunken model of random weights for a few steps, "
        "then merge and export: seconds, offline, nothing kept.")] = False,
) -> None:
    """Train an adapter as a recipe says.

    Also works when started by `accelerate launch -m lorafit train …` or torchrun.
    """
    from lorafit.cli import verbs

    verbs.train(recipe_path, overrides or [], resume=resume, processes=processes, smoke=smoke,
                started_s=STARTED_S)


@app.command()
def check(recipe_path: RecipePath, overrides: Overrides = None) -> None:
    """Validate a recipe against its data and its model, without loading weights.

    Prints what would be trained: rows, tokens, layers, parameters, and what `auto` means here.
    """
    from lorafit.cli import verbs

    verbs.check(recipe_path, overrides or [])


@app.command()
def targets(
    model: Annotated[str, typer.Argument(
        metavar="MODEL|RECIPE", show_default=False,
        help="A model directory, a hub id, tiny, or a recipe.")],
    recipe_path: Annotated[Path | None, typer.Option(
        "--recipe", show_default=False,
        help="Show what this recipe's adapter section would adapt of MODEL.")] = None,
    overrides: Overrides = None,
    rank: Annotated[int | None, typer.Option(
        min=1, show_default=False,
        help="Rank that costs are given for; the recipe's, or 16, if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """List a model's layers, what LoRA on each costs, and what a recipe adapts of them.

    Loads no weights. Also prints target_modules lines for a recipe.
    """
    from lorafit.cli import verbs

    verbs.targets(model, recipe_path, overrides or [], rank, as_json)


@app.command()
def bench(
    recipe_path: Annotated[Path | None, typer.Argument(
        metavar="RECIPE", show_default=False,
        help="A YAML recipe: its model, adapter and first rows. Random ones if left out.")] = None,
    overrides: Overrides = None,
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each side that are timed.")] = 7,
    also: Annotated[str | None, typer.Option(
        metavar="SIDE,…", show_default=False,
        help="Further sides: paca, upper (the adapter on the upper half of the layers).")] = None,
    shape: Annotated[str | None, typer.Option(
        show_default="llama-100m", help="Sizes of a model of random weights: tiny, llama-100m, "
        "llama-3.2-1b or llama-3.1-8b.")] = None,
    rank: Annotated[int | None, typer.Option(show_default="16", help="Rank of LoRA.")] = None,
    batch_size: Annotated[int | None, typer.Option(show_default="8", help="Rows a step.")] = None,
    length: Annotated[int | None, typer.Option(
        show_default="256", help="Tokens of a row, on average: half to one and a half times as "
        "many.")] = None,
    even: Annotated[bool, typer.Option("--even", help="Rows of exactly that length.")] = False,
    supervised: Annotated[float | None, typer.Option(
        show_default="0.6", help="Share of a row's tokens that is trained, at its end.")] = None,
    dtype: Annotated[str | None, typer.Option(
        show_default="auto", help="auto, float32, bfloat16 or float16.")] = None,
    quantization: Annotated[str | None, typer.Option(
        show_default="none", help="Storage of the base: none or nf4.")] = None,
    micro_tokens: Annotated[int | None, typer.Option(
        show_default="auto", help="Most tokens computed at once.")] = None,
    checkpointing: Annotated[bool, typer.Option(
        "--activation-checkpointing", help="Compute activations again in the backward pass.",
    )] = False,
    json_to: Annotated[Path | None, typer.Option(
        "--json", metavar="FILE", show_default=False,
        help="Write everything as JSON too; - for the standard output, and nothing else.")] = None,
) -> None:
    """Measure how fast a training step is here, and where its time goes.

    Four sides take turns on the same rows: the base without an adapter (the floor), lorafit, the
    same adapter in plain peft, and full fine-tuning. With a RECIPE its other settings are changed
    by --set, and nothing is written to its output directory.
    """
    from lorafit.cli import verbs

    verbs.bench(recipe_path, overrides or [], rounds, also, {
        "shape": shape, "rank": rank, "batch_size": batch_size, "length": length,
        "even": even or None, "supervised": supervised, "dtype": dtype,
        "quantization": quantization, "micro_tokens": micro_tokens,
        "checkpointing": checkpointing or None}, json_to)


@app.command()
def preview(
    recipe_path: RecipePath,
    overrides: Overrides = None,
    rows: Annotated[int | None, typer.Option(
        min=1, show_default=False,
        help="Show so many rows, at equal distances; 3, or 20 with --html, if left out.")] = None,
    row: Annotated[list[str] | None, typer.Option(
        metavar="FILE:LINE|N", show_default=False,
        help="Show this row instead, by its place or as the N-th one. Repeatable.")] = None,
    split: Annotated[str, typer.Option(help="Whose rows are shown: train or eval.")] = "train",
    html: Annotated[Path | None, typer.Option(
        show_default=False, help="Write a page for the browser instead; it must not exist yet.",
    )] = None,
    tokens: Annotated[bool, typer.Option(
        "--tokens", help="Draw a line after each token.")] = False,
) -> int:
    """Show what the model will see: rows token by token, what is trained, lengths, checks.

    Loads no weights. Goes on where training would stop, shows why, and exits with 2 then.
    """
    from lorafit.cli import verbs

    return verbs.preview(recipe_path, overrides or [], rows, row or [], split, html, tokens)


@app.command()
def init(
    data: Annotated[Path, typer.Option(help="File with training rows.", show_default=False)],
    model: Annotated[str, typer.Option(
        help="Base model: a directory, a hub id, or tiny.")] = "tiny",
    evaluation: Annotated[Path | None, typer.Option(
        "--eval", help="File with held-out rows.", show_default=False)] = None,
    quantization: Annotated[str, typer.Option(
        help="Storage of the base: none, nf4, fp4 or int8.")] = "none",
    output: Annotated[Path, typer.Option(
        "--output", "-o", help="Recipe to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented starter recipe for a model and a data file."""
    from lorafit.cli import verbs

    verbs.init(model, data, evaluation, quantization, output)


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option(
        "--markdown", help="Print the reference page instead.")] = False,
) -> None:
    """Print the JSON schema of recipes, for editors and scripts."""
    from lorafit.recipe import reference

    sys.stdout.write(reference.markdown() if markdown else reference.json_schema())


@app.command()
def generate(
    trained: Trained,
    prompt: Annotated[str, typer.Option(
        "--prompt", "-p", help="What to answer.", show_default=False)],
    which: Annotated[str, typer.Option(
        "--with", help="Who answers: base, adapter or both side by side.")] = "both",
    base: Base = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(
        min=0, help="0 takes the most likely token at each step.")] = 0.0,
    top_p: Annotated[float, typer.Option(
        min=0.01, max=1, help="Draw from the most likely tokens of this total probability.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the drawing.")] = 0,
) -> None:
    """Answer a prompt with the base, the adapter, or both side by side."""
    from lorafit.cli import verbs

    verbs.generate(trained, prompt, which, base, max_new_tokens, temperature, top_p, seed)


@app.command(name="eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run.", show_default=False)],
    rows: Annotated[int | None, typer.Option(
        min=1, help="Use only the first held-out rows.", show_default=False)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    samples: Annotated[int, typer.Option(min=0, help="Sample answers to print.")] = 4,
) -> None:
    """Answer a run's held-out prompts with base and adapter; count exact matches."""
    from lorafit.cli import verbs

    verbs.evaluate(run, rows, max_new_tokens, samples)


@app.command()
def merge(
    trained: Trained,
    output: Output = None,
    base: Base = None,
    dtype: Annotated[str | None, typer.Option(
        help="Convert the weights: float32, bfloat16 or float16. As on disk if left out.",
        show_default=False)] = None,
) -> None:
    """Write base and adapter as one full-precision model, and check it against the two."""
    from lorafit.cli import verbs

    verbs.merge(trained, output, base, dtype)


@app.command(name="export-adapter")
def export_adapter(trained: Trained, output: Output = None, base: Base = None) -> None:
    """Write the adapter with its tokenizer in peft's format, and check it with plain peft."""
    from lorafit.cli import verbs

    verbs.export_adapter(trained, output, base)


@app.command()
def inspect(
    trained: Trained,
    every_layer: Annotated[bool, typer.Option(
        "--layers", help="A line for each layer, not for each kind of layer.")] = False,
    shrink: Annotated[float | None, typer.Option(
        metavar="SHARE", show_default=False,
        help="Write an adapter whose ranks are the smallest that keep this share of each layer's "
        "energy ‖ΔW‖², for example 0.99.")] = None,
    rank: Annotated[int | None, typer.Option(
        min=1, show_default=False,
        help="Write an adapter cut to this rank, for a server's limit.")] = None,
    compare: Annotated[Path | None, typer.Option(
        metavar="RUN|ADAPTER", show_default=False,
        help="Compare with another adapter of the same base.")] = None,
    output: Output = None,
    base: Base = None,
    json_to: Json = None,
) -> None:
    """Show what an adapter changes in each layer: how much, in how many directions, what is dead.

    With --shrink or --rank writes a smaller adapter and measures what it loses; with --compare
    shows how alike two adapters are.
    """
    from lorafit.cli import verbs

    verbs.inspect(trained, base, every_layer=every_layer, share=shrink, rank=rank, other=compare,
                  output=output, json_to=json_to)


@app.command()
def combine(
    trained: Annotated[list[Path], typer.Argument(
        metavar="RUN|ADAPTER...", show_default=False, help="Two or more adapters of one base.")],
    output: Annotated[Path, typer.Option(
        "--output", "-o", help="Directory to write; it must not exist yet.", show_default=False)],
    how: Annotated[str, typer.Option(
        help="linear, cat, svd, ties, dare_linear, dare_ties or magnitude_prune.")] = "linear",
    weights: Annotated[str | None, typer.Option(
        metavar="W,W,…", show_default=False,
        help="A factor for each adapter; equal ones that add up to 1 if left out.")] = None,
    density: Annotated[float | None, typer.Option(
        show_default=False,
        help="Share of entries that ties, dare_… and magnitude_prune keep; 0.5 if left out.",
    )] = None,
    rank: Annotated[int | None, typer.Option(
        min=1, show_default=False,
        help="Largest rank of the result; that of the inputs, or all there is for linear, if left "
        "out.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what dare_… drops.")] = 0,
    base: Base = None,
    json_to: Json = None,
) -> None:
    """Make one adapter of several of the same base, and measure the loss of each and of it."""
    from lorafit.cli import verbs

    verbs.combine(trained, output, how, weights, density, rank, seed, base, json_to)


@app.command()
def cache(
    delete: Annotated[list[str] | None, typer.Option(
        metavar="KEY", show_default=False,
        help="Delete the entry whose key begins like that. Repeatable.")] = None,
    delete_all: Annotated[bool, typer.Option("--delete-all", help="Delete every entry.")] = False,
    unused_days: Annotated[float | None, typer.Option(
        min=0, show_default=False,
        help="Delete what was not used for so many days.")] = None,
) -> None:
    """List the cache of tokenised rows, or delete from it.

    Entries are keyed by the content of everything they were made from, so they are never stale;
    deleting one only costs the time to make it again. The cache is in $LORAFIT_CACHE, or in
    ~/.cache/lorafit.
    """
    from lorafit.cli import verbs

    verbs.cache(delete or [], delete_all, unused_days)


def main() -> None:
    """Run the command line; the process ends with one of errors.EXIT_CODES."""
    stdio.settle()
    sys.exit(_run())


def _run() -> int:
    from lorafit.launch import is_main_rank

    try:
        result = app(standalone_mode=False)
    except LorafitError as error:
        # Every rank finds the same mistake; one of them says so.
        if is_main_rank():
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except typer.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # wrong usage of the command
            error.show()
            return int(error.exit_code)
        if (message := _machine_trouble(error)) is not None:
            print(f"error: {message}", file=sys.stderr)
            return 3
        raise
    return result if isinstance(result, int) else 0


def _machine_trouble(error: Exception) -> str | None:
    """A message for what the machine refused, None for anything else."""
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return ("out of memory\n    lower training.micro_batch_size, set "
                "training.activation_checkpointing=full, or quantise the base "
                "(model.quantization=nf4)")
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}"
    return None
