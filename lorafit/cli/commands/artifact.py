"""Verbs on what left a run: verified, published."""

from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli.app import Base, Json, app


@app.command()
def verify(
    artifact: Annotated[Path | None, typer.Argument(
        show_default=False, help="A merged model or an exported adapter.")] = None,
    against: Annotated[Path | None, typer.Option(
        metavar="RUN|ADAPTER", show_default=False,
        help="The run it is from: measure anew. Without it the artifact's own proof is checked: "
        "every file's hash, and the base.")] = None,
    base: Base = None,
    rows: Annotated[int | None, typer.Option(
        min=1, show_default=False,
        help="Compare on the first held-out rows that the run keeps; all if left out.")] = None,
    prompts: Annotated[int, typer.Option(
        min=0, help="Held-out prompts to answer greedily.")] = 8,
    tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 32,
    tolerance: Annotated[float | None, typer.Option(
        min=0, show_default=False,
        help="Largest relative difference of the logits, in place of the usual limits: for "
        "adapters that were shrunk or combined.")] = None,
    endpoint: Annotated[str | None, typer.Option(
        metavar="URL", show_default=False,
        help="Ask a server of the OpenAI API in place of loading an artifact.")] = None,
    model: Annotated[str | None, typer.Option(
        metavar="NAME", show_default=False, help="With --endpoint: the adapter's or merged model's "
        "name there.")] = None,
    base_name: Annotated[str | None, typer.Option(
        metavar="NAME", show_default=False, help="With --endpoint: the base's name there, if the "
        "server does not tell.")] = None,
    api_key_env: Annotated[str | None, typer.Option(
        metavar="VARIABLE", show_default=False, help="With --endpoint: the environment variable "
        "that holds its key.")] = None,
    tie: Annotated[float | None, typer.Option(
        min=0, show_default=False, help="With --endpoint: how many nats apart two tokens may be "
        "for the server to take the other one; 0.3, for 16 bits, if left out.")] = None,
    timeout_s: Annotated[float, typer.Option(
        min=0.1, help="With --endpoint: seconds to wait for an answer.")] = 60.0,
    keep: Annotated[bool, typer.Option(
        "--keep/--no-keep", help="Keep what was measured in the artifact's lorafit_proof.json."),
    ] = True,
    json_to: Json = None,
) -> None:
    """Check that an artifact, or a server that has it, computes what was trained.

    Loads it from its files and compares greedy answers, log-probabilities, KL divergence, most
    likely tokens, logits and loss with the trainer's own model. Exit code 5 when it differs.
    """
    from lorafit.cli.verbs import artifact as verbs

    if endpoint is not None:
        verbs.verify_endpoint(
            artifact, against, base, endpoint, model, base_name, api_key_env, prompts=prompts,
            tokens=tokens, tie=tie, timeout_s=timeout_s, json_to=json_to)
        return
    given = {"--model": model, "--base-name": base_name, "--api-key-env": api_key_env,
             "--tie": tie}
    verbs.verify(artifact, against, base, rows=rows, prompts=prompts, tokens=tokens,
                 tolerance=tolerance, keep=keep, json_to=json_to,
                 for_endpoint=[name for name, value in given.items() if value is not None])


@app.command()
def push(
    artifact: Annotated[Path, typer.Argument(
        show_default=False, help="A merged model or an exported adapter, with its proof.")],
    repo: Annotated[str | None, typer.Argument(
        metavar="OWNER/NAME|file:///DIR", show_default=False,
        help="The hub repository, made if it does not exist; or a directory to write instead."),
    ] = None,
    public: Annotated[bool, typer.Option(
        "--public/--private", help="Who may see a repository that is made.")] = False,
    to_dir: Annotated[Path | None, typer.Option(
        show_default=False, help="Write exactly what would be uploaded to this new directory.",
    )] = None,
    allow: Annotated[list[str] | None, typer.Option(
        metavar="FILE", show_default=False,
        help="Upload a file that the proof does not know. Repeatable.")] = None,
    message: Annotated[str | None, typer.Option(
        show_default=False, help="Message of the commit.")] = None,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Show what would be uploaded; ask nothing and nobody.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Upload without asking.")] = False,
) -> None:
    """Publish an artifact on the hub, after showing what would be uploaded.

    Hashes are checked against the artifact's proof before, and the hub's against it afterwards.
    Secrets, training rows, checkpoints and files nobody expects are refused.
    """
    from lorafit.cli.verbs import artifact as verbs

    verbs.push(artifact, repo, public=public, to_dir=to_dir, allow=allow or [], message=message,
               dry_run=dry_run, yes=yes)
