"""Verbs that answer: a server, and a conversation in the terminal."""

from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli.app import Base, app

ApiKey = Annotated[str | None, typer.Option(
    "--api-key-env", metavar="VARIABLE", show_default=False,
    help="Environment variable that holds the API key.")]
Dtype = Annotated[str | None, typer.Option(
    help="Number format of the base: float32, bfloat16 or float16. The runs' own if left out.",
    show_default=False)]


@app.command(context_settings={"ignore_unknown_options": False})
def serve(
    trained: Annotated[list[str], typer.Argument(
        metavar="[NAME=]RUN|ADAPTER... [-- ENGINE ARGUMENTS]", show_default=False,
        help="Runs or adapters of one base, each under a name (its directory's, if left out). "
        "What stands after -- is handed to the engine.")],
    engine: Annotated[str, typer.Option(
        help="vllm, sglang, llama.cpp, or transformers: a small server for trying. auto takes the "
        "first of vllm and sglang that is installed here or on PATH, then transformers.")] = "auto",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 8000,
    api_key_env: ApiKey = None,
    base: Base = None,
    dtype: Dtype = None,
    gguf: Annotated[Path | None, typer.Option(
        metavar="FILE", show_default=False, help="The base as GGUF, for llama.cpp.")] = None,
    work: Annotated[Path | None, typer.Option(
        metavar="DIR", show_default=False,
        help="Keep the adapters that are exported for the engine there, and use them again. A "
        "temporary folder if left out.")] = None,
    max_batch: Annotated[int, typer.Option(
        min=1, help="With transformers: answers computed together at most.")] = 8,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Print the command that would be run, and what speaks against it.",
    )] = False,
) -> int:
    """Serve adapters on their base behind OpenAI's API, each as a model of its own.

    Starts an engine that is installed, with the adapters exported and checked for it; without one,
    a small server of lorafit's own that is for trying, not for production.
    """
    from lorafit.cli.verbs import serve as verbs

    return verbs.serve(verbs.Request(trained, engine, host, port, api_key_env, base, dtype, gguf,
                                     work, max_batch, dry_run))


@app.command()
def chat(
    trained: Annotated[list[str] | None, typer.Argument(
        metavar="[NAME=]RUN|ADAPTER...", show_default=False,
        help="Runs or adapters of one base.")] = None,
    endpoint: Annotated[str | None, typer.Option(
        metavar="URL", show_default=False,
        help="Talk to a server with OpenAI's API instead, for example "
        "http://127.0.0.1:8000/v1.")] = None,
    model: Annotated[str | None, typer.Option(
        metavar="NAME", show_default=False, help="With --endpoint: who answers first.")] = None,
    which: Annotated[str | None, typer.Option(
        "--with", metavar="WHO", show_default=False,
        help="Who answers first: base, adapter, both, or names with commas between.")] = None,
    system: Annotated[str | None, typer.Option(
        help="A system message.", show_default=False)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(
        min=0, help="0 takes the most likely token at each step.")] = 0.0,
    api_key_env: ApiKey = None,
    base: Base = None,
    dtype: Dtype = None,
) -> int:
    """Talk to adapters and their base in the terminal, one of them or several side by side.

    /help lists what can be typed besides messages. Reads messages from a pipe too, one a line.
    """
    from lorafit.cli.verbs import serve as verbs

    return verbs.chat(trained or [], endpoint, model, which, system, max_new_tokens, temperature,
                      api_key_env, base, dtype)
