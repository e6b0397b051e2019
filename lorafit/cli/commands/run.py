"""Verbs on a finished run or an adapter."""

from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli.app import Base, Json, Output, Trained, app
from lorafit.export.formats import FORMATS

_FORMATS = "For what: " + ", ".join(
    name if name == who.lower() else f"{name} ({who})" for name, who in FORMATS.items()) + "."


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
    from lorafit.cli.verbs import run as verbs

    verbs.generate(trained, prompt, which, base, max_new_tokens, temperature, top_p, seed)


@app.command()
def merge(
    trained: Trained,
    output: Output = None,
    base: Base = None,
    dtype: Annotated[str | None, typer.Option(
        help="Convert the weights: float32, bfloat16 or float16. As on disk if left out.",
        show_default=False)] = None,
    form: Annotated[str, typer.Option(
        "--format", help="safetensors (a directory for transformers) or gguf (llama.cpp, Ollama).")
    ] = "safetensors",
    gguf_type: Annotated[str | None, typer.Option(
        help="How a GGUF stores weights: f32, f16, bf16 or q8_0. As on disk if left out.",
        show_default=False)] = None,
    onto: Annotated[str, typer.Option(
        help="Of a run on a quantised base: full (the weights before they were quantised), "
        "dequantised (those that training saw) or requantised (those, quantised again).")] = "full",
    compare: Annotated[bool, typer.Option(
        "--compare", help="Of a run on a quantised base: measure the three beside what was "
        "trained, and write nothing.")] = False,
    plan: Annotated[bool, typer.Option(
        "--plan", help="Show which tensors would change, be replaced or added, what is done in "
        "memory and why, and how large the result is; write nothing.")] = False,
    check: Annotated[str, typer.Option(
        help="What is checked: logits (both models in memory in float32), tensors (one at a time), "
        "or auto: logits where memory allows.")] = "auto",
    json_to: Json = None,
) -> None:
    """Write base and adapter as one model, tensor by tensor, and check it against the two."""
    from lorafit.cli.verbs import run as verbs

    if form != "safetensors" or gguf_type is not None:
        from lorafit.cli.before import refuse_beside
        from lorafit.cli.verbs import gguf

        refuse_beside(f"--format {form}", "has one way to write and to check",
                      {"--compare": compare, "--plan": plan, "--check": check != "auto",
                       "--json": json_to is not None})
        gguf.merge(trained, output, base, dtype, form, gguf_type, onto)
    else:
        verbs.merge(trained, output, base, dtype, onto, check, compare=compare, plan=plan,
                    json_to=json_to)


@app.command(name="export-adapter")
def export_adapter(
    trained: Trained,
    form: Annotated[str, typer.Option("--format", help=_FORMATS)] = "peft",
    max_rank: Annotated[int | None, typer.Option(
        min=1, show_default=False,
        help="Cut larger ranks to this one, for a server's limit; what that costs is measured.",
    )] = None,
    output: Output = None,
    base: Base = None,
) -> None:
    """Write the adapter for the program that will load it, and check what was written.

    Tokenizer, chat template and generation settings go with it. What a format cannot express is
    refused before anything is written, with every reason and the way out.
    """
    from lorafit.cli.verbs import run as verbs

    verbs.export_adapter(trained, output, base, form, max_rank)


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
    from lorafit.cli.verbs import run as verbs

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
    from lorafit.cli.verbs import run as verbs

    verbs.combine(trained, output, how, weights, density, rank, seed, base, json_to)
