"""What the verbs on artifacts do."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import typer

from lorafit import libraries
from lorafit.cli.before import on_hub, refuse_taken_json, settle_hub_for
from lorafit.errors import UserError, VerificationError
from lorafit.recipe.schema import Model


def verify(artifact: Path | None, against: Path | None, base: str | None, *, rows: int | None,
           prompts: int, tokens: int, tolerance: float | None, keep: bool, json_to: Path | None,
           for_endpoint: list[str]) -> None:
    if for_endpoint:
        raise UserError("is for a server", ", ".join(for_endpoint),
                        "give its address with --endpoint, or leave it out")
    if artifact is None:
        raise UserError("there is nothing to verify", "verify",
                        "name an artifact, or a server with --endpoint")
    refuse_taken_json(json_to)
    if against is None:
        if tolerance is not None or rows is not None:
            raise UserError("nothing is measured without the run", "--tolerance, --rows",
                            "name it with --against, or leave them out")
        libraries.settle(base is not None and on_hub(Model(base=base)))
    else:
        settle_hub_for(against, base)
    from lorafit.cli import show_artifact
    from lorafit.model.trained import open_adapter
    from lorafit.verify.against import Asked, record, verify_against
    from lorafit.verify.artifact import open_artifact
    from lorafit.verify.unchanged import verify_unchanged

    opened = open_artifact(artifact)
    if against is None:
        _conclude(verify_unchanged(opened, base), json_to)
        return
    source = open_adapter(against, base)
    asked = Asked(rows, prompts, tokens, tolerance)
    found = verify_against(opened, source, asked, _say(json_to))
    _conclude(found, json_to)
    if keep:
        record(opened, source, asked, found)
        if json_to is None:
            show_artifact.kept(artifact)


def verify_endpoint(artifact: Path | None, against: Path | None, base: str | None, url: str,
                    name: str | None, base_name: str | None, key_variable: str | None, *,
                    prompts: int, tokens: int, tie: float | None, timeout_s: float,
                    json_to: Path | None) -> None:
    if artifact is not None:
        raise UserError("is an artifact, and --endpoint asks a server", str(artifact),
                        "leave out one of them")
    if against is None:
        raise UserError("a server is compared with the run", "--against",
                        "name the run whose adapter it has")
    if name is None:
        raise UserError("the server's name of the adapter is missing", "--model",
                        "give the name that it was loaded by, as /v1/models lists it")
    key = None
    if key_variable is not None:
        key = os.environ.get(key_variable)
        if not key:
            raise UserError("the environment has no such variable", f"--api-key-env {key_variable}",
                            "export it first; keys are not taken from the command line, where "
                            "others could see them")
    refuse_taken_json(json_to)
    settle_hub_for(against, base)
    from lorafit.model.trained import open_adapter
    from lorafit.verify.endpoint import Endpoint
    from lorafit.verify.hearing import AskedOf
    from lorafit.verify.served import verify_served

    endpoint = Endpoint(url, key, timeout_s)
    found = verify_served(endpoint, open_adapter(against, base),
                          AskedOf(name, base_name, max(1, prompts), tokens, tie),
                          _say(json_to))
    _conclude(found, json_to)


def _conclude(found: object, json_to: Path | None) -> None:
    """Show figures and verdict. VerificationError when it is bad."""
    from lorafit.cli import show_artifact
    from lorafit.cli.show_inspect import either
    from lorafit.verify.figures import NO_EFFECT, Verification

    assert isinstance(found, Verification)
    either(json_to, found, show_artifact.verification)
    if not found.passed:
        failed = [figure.name for each in found.compared for figure in each.figures
                  if figure.passed is False]
        effect = next((remark for remark in found.remarks if remark.startswith(NO_EFFECT)), "")
        raise VerificationError(
            f"{found.subject}: differs from what was trained ({', '.join(failed)})"
            + (f"\n    {effect}" if effect else "") + f"\n    {found.remedy}")


def _say(json_to: Path | None) -> Callable[[str], None]:
    """Progress on the terminal, unless the standard output is a script's."""
    from lorafit.cli import show

    return (lambda text: None) if str(json_to) == "-" else show.progress


def push(artifact: Path, repo: str | None, *, public: bool, to_dir: Path | None, allow: list[str],
         message: str | None, dry_run: bool, yes: bool) -> None:
    if repo is not None and repo.startswith("file://"):
        if to_dir is not None:
            raise UserError("two directories are named", f"{repo}, --to-dir", "leave one out")
        to_dir, repo = Path(repo.removeprefix("file://")), None
    if (repo is None) == (to_dir is None):
        raise UserError("where to is missing" if repo is None else "a repository and a directory "
                        "exclude each other", "push",
                        "name a repository as OWNER/NAME, or a directory with --to-dir")
    is_asked = not (dry_run or yes or to_dir)
    if is_asked and not sys.stdin.isatty():
        raise UserError("nobody is here to confirm the upload", "push",
                        "look at it with --dry-run, then give --yes")
    is_reachable = libraries.settle(repo is not None and not dry_run)
    from lorafit.cli import show_artifact
    from lorafit.publish.hub import Hub
    from lorafit.publish.plan import make_plan, write_to

    plan = make_plan(artifact, allow)
    if to_dir is not None:
        show_artifact.plan(plan, str(to_dir), "a directory")
        if not dry_run:
            write_to(plan, to_dir)
            show_artifact.pushed(str(to_dir))
        return
    assert repo is not None
    if dry_run:
        show_artifact.plan(plan, repo, "public" if public else "private")
        show_artifact.nothing_uploaded()
        return
    hub = Hub(repo, public=public, is_reachable=is_reachable)
    show_artifact.plan(plan, f"{hub.endpoint}/{repo}", hub.visibility)
    if is_asked:
        typer.confirm("upload?", abort=True)
    show_artifact.pushed(hub.upload(plan, message or f"Upload {artifact.name} with lorafit"))
