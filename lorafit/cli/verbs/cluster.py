"""From a recipe and options to a file for a cluster."""

import math
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

from lorafit.cli.app import app
from lorafit.cli.before import needs_hub
from lorafit.clusters import TARGETS
from lorafit.clusters.job import Job
from lorafit.clusters.target import Target
from lorafit.errors import UserError
from lorafit.recipe.loading import load_recipe
from lorafit.recipe.schema import Recipe
from lorafit.run_dir import refuse_target, write_text

_GIB_OF = {"M": 1 / 1024, "G": 1.0, "T": 1024.0}


@dataclass(frozen=True)
class Asked:
    """The options as they were given."""

    nodes: int
    processes: int
    restarts: int
    time_s: int | None
    partition: str
    account: str
    gpu_type: str
    cpus: int | None
    memory: str | None
    image: str
    volume: str
    rendezvous: str
    setup: list[str] | None
    environment: list[str] | None


def launch_script(recipe_path: Path, overrides: list[str], options: list[str],
                  chosen: Mapping[str, bool], asked: Asked, output: Path) -> None:
    recipe = load_recipe(recipe_path, overrides)
    _refuse_wrong(options)
    names = [name for name, is_chosen in chosen.items() if is_chosen]
    if len(names) != 1:
        raise UserError("choose one target" if not names else "only one target fits in a file",
                        " ".join(f"--{name}" for name in names) or "launch-script",
                        f"give one of {', '.join(f'--{name}' for name in chosen)}")
    target = TARGETS[names[0]]
    ranks = asked.nodes * asked.processes
    if ranks > recipe.training.batch_size:
        raise UserError(f"{ranks} processes for a batch of {recipe.training.batch_size}",
                        "training.batch_size", "raise it, or use --nodes and --num-processes")
    is_file = str(output) != "-"
    if is_file:
        refuse_target(output, "choose another file with --output")
        if output.is_dir() or not output.absolute().parent.is_dir():
            raise UserError("is a directory" if output.is_dir() else "lies in no directory",
                            str(output), "name a file with --output")
    text = target.write(_job(recipe, recipe_path, overrides, options, target, asked))
    if not is_file:
        sys.stdout.write(text)
        return
    write_text(output, text)
    if target.is_script:
        output.chmod(0o755)
    print(f"{output} written\nnext      {target.next_step.format(file=shlex.quote(str(output)))}")


# Options of `lorafit train` that the file gives itself, or that make no sense in one.
_GIVEN = {"processes": "--num-processes", "nodes": "--nodes", "node_rank": "--node-rank",
          "rendezvous": "--rendezvous", "rendezvous_timeout": "--rendezvous-timeout",
          "restarts": "--restarts", "stop_after": "--stop-after", "resume": "--resume",
          "or_start": "--auto-resume", "smoke": "--smoke", "overrides": "--set"}


def _refuse_wrong(options: list[str]) -> None:
    """UserError, or that of the command line, for what `lorafit train` does not take, or is given
    by the file anyway: found here and not in the queue."""
    train = typer.main.get_group(app).commands["train"]
    context = train.make_context("lorafit train", ["recipe.yaml", *options])
    for name, option in _GIVEN.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UserError("is what the file says itself", f"-- {option}",
                            "leave it out, or give it before -- where it is offered")


def _job(recipe: Recipe, path: Path, overrides: list[str], options: list[str], target: Target,
         asked: Asked) -> Job:
    here = Path.cwd()
    inside, stays = _from(here, path), _from(here, Path(recipe.output.dir))
    if not target.is_script:
        for what, place in ((str(path), inside), ("output.dir", stays)):
            if Path(place).is_absolute() or ".." in Path(place).parts:
                raise UserError(
                    f"{place} is not below {here}, which is all that the machines get to see",
                    what, "call lorafit launch-script in a directory that has both the recipe "
                    "and output.dir in it, by relative paths")
    setup = asked.setup
    if setup is None:
        setup = _own_environment() if target.is_script and not asked.image else []
    names = asked.environment
    if names is None:
        names = ["HF_TOKEN"] if needs_hub(recipe) else []
    return Job(
        name=_name(path.stem), directory=str(here), recipe=inside, run_dir=stays,
        command=shlex.join(["lorafit", *sys.argv[1:]]), overrides=tuple(overrides),
        options=tuple(options),
        nodes=asked.nodes, processes=asked.processes, restarts=asked.restarts,
        time_s=asked.time_s, memory_gib=_gib(asked.memory), cpus=asked.cpus,
        gpu_type=asked.gpu_type, partition=asked.partition, account=asked.account,
        image=asked.image, volume=asked.volume, rendezvous=asked.rendezvous,
        setup=tuple(setup), environment=tuple(dict.fromkeys(names)))


def _from(here: Path, path: Path) -> str:
    """A path as it is reached from a directory: relative below it."""
    absolute = here / path
    try:
        return str(absolute.relative_to(here))
    except ValueError:
        return str(path)


def _own_environment() -> list[str]:
    """The line that enters the virtual environment that this process runs in."""
    activate = Path(sys.prefix) / "bin" / "activate"
    if sys.prefix == sys.base_prefix or not activate.exists():
        return []
    return [f"source {shlex.quote(str(activate))}"]


def _name(stem: str) -> str:
    """A name that is one for jobs, pods and hosts alike: letters, digits and dashes."""
    words = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:40].strip("-")
    return words if words[:1].isalpha() else f"run-{words}".rstrip("-")


def _gib(text: str | None) -> int | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([MGT])(?:i?B)?", text.strip(), re.IGNORECASE)
    gib = 0.0 if match is None else float(match[1]) * _GIB_OF[match[2].upper()]
    if gib <= 0:
        raise UserError(f"{text!r} is no amount of memory", "--memory",
                        "write it with its unit, for example 200G or 1T")
    return math.ceil(gib)
