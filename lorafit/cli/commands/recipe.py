"""Verbs that start from a recipe, or lead to one."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli.app import STARTED_S, Overrides, RecipePath, app
from lorafit.cli.durations import duration_s


@app.command()
def train(
    recipe_path: RecipePath,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(
        "--resume", help="Go on from the newest intact checkpoint of the run.")] = False,
    or_start: Annotated[bool, typer.Option(
        "--auto-resume", help="Go on like --resume where there is a run in output.dir, else start "
        "it: one command for a job that is queued again after each interruption.")] = False,
    stop_after: Annotated[str | None, typer.Option(
        metavar="TIME", show_default=False,
        help="Commit a checkpoint and end, with exit code 6, once this process has run so long: "
        "90s, 45m, 3h, 2h30m. Leave time for a step and for saving.")] = None,
    processes: Annotated[int | None, typer.Option(
        "--num-processes", min=1, show_default=False,
        help="Ranks to train on, on each machine; all its GPUs, or 1 on a CPU, if left "
        "out.")] = None,
    strategy: Annotated[str, typer.Option(
        help="How several ranks share the work: ddp (each holds the base), fsdp (base, adapter and "
        "optimizer are cut up among them), hsdp (among those of each machine), or auto: the first "
        "that fits.")] = "auto",
    cpu_offload: Annotated[bool, typer.Option(
        "--cpu-offload", help="Keep the parts of a sharded base in the host's memory while they "
        "are not computed with: slow, for what fits no other way.")] = False,
    context_parallel: Annotated[int, typer.Option(
        "--context-parallel", min=1, metavar="N",
        help="N ranks share the tokens of each row, for rows that are longer than one device "
        "holds.")] = 1,
    nodes: Annotated[int | None, typer.Option(
        "--nodes", min=1, show_default=False,
        help="Machines to train on: the same command on each, with its own --node-rank.")] = None,
    node_rank: Annotated[int | None, typer.Option(
        "--node-rank", min=0, show_default=False,
        help="Which of them this is, from 0.")] = None,
    rendezvous: Annotated[str | None, typer.Option(
        "--rendezvous", metavar="HOST:PORT", show_default=False,
        help="Where they meet: machine 0, as all others reach it, and a free port of it.")] = None,
    rendezvous_timeout: Annotated[str | None, typer.Option(
        "--rendezvous-timeout", metavar="TIME", show_default="5m",
        help="How long they wait for each other.")] = None,
    restarts: Annotated[int, typer.Option(
        "--restarts", min=0, help="Start all ranks again, so many times at most, after one died or "
        "its machine went away; they go on from the newest checkpoint.")] = 0,
    rank_timeout: Annotated[str, typer.Option(
        "--rank-timeout", metavar="TIME",
        help="End several ranks, and say where each stands, when none of them has got on for so "
        "long.")] = "10m",
    smoke: Annotated[bool, typer.Option(
        "--smoke", help="Run the recipe on a shrunken model of random weights for a few steps, "
        "then merge and export: seconds, offline, nothing kept.")] = False,
) -> None:
    """Train an adapter as a recipe says.

    Also works when started by `accelerate launch -m lorafit train …`, `torchrun -m lorafit train …`
    or Slurm's `srun lorafit train …`. SIGTERM and Ctrl-C finish the step that is under way, commit
    a checkpoint and end; SIGUSR1 commits one and goes on; a second Ctrl-C ends at once.
    """
    from lorafit.cli.verbs import recipe as verbs
    from lorafit.launch.request import Options

    timeout_s = None if rendezvous_timeout is None else duration_s(
        rendezvous_timeout, "--rendezvous-timeout")
    verbs.train(recipe_path, overrides or [], resume=resume, or_start=or_start,
                stop_after_s=None if stop_after is None else duration_s(stop_after, "--stop-after"),
                options=Options(processes, nodes, node_rank, rendezvous, timeout_s, restarts),
                strategy=strategy, cpu_offload=cpu_offload, context_parallel=context_parallel,
                smoke=smoke, started_s=STARTED_S,
                rank_timeout_s=duration_s(rank_timeout, "--rank-timeout"))


@app.command()
def check(recipe_path: RecipePath, overrides: Overrides = None) -> None:
    """Validate a recipe against its data and its model, without loading weights.

    Prints what would be trained: rows, tokens, layers, parameters, and what `auto` means here.
    """
    from lorafit.cli.verbs import recipe as verbs

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
    from lorafit.cli.verbs import recipe as verbs

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
    from lorafit.cli.verbs import recipe as verbs

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
    from lorafit.cli.verbs import recipe as verbs

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
    from lorafit.cli.verbs import recipe as verbs

    verbs.init(model, data, evaluation, quantization, output)


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option(
        "--markdown", help="Print the reference page instead.")] = False,
) -> None:
    """Print the JSON schema of recipes, for editors and scripts."""
    from lorafit.recipe import reference

    sys.stdout.write(reference.markdown() if markdown else reference.json_schema())
