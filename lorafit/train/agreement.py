"""What ranks must agree on before they train together, checked before anything large is loaded.

Ranks of several machines may be started with other libraries, another copy of the recipe or other
options. They would train on, and differ in silence.
"""

import json
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

from lorafit.errors import Problem, UserError
from lorafit.recipe.auto import Device
from lorafit.recipe.loading import flat
from lorafit.recipe.schema import Recipe
from lorafit.train.record import versions_here

_OF_THE_MACHINE = ("--node-rank",)  # what may, and must, differ
_MOST_SHOWN = 8
_LONGEST = 60


def agree(accelerator: Any, recipe: Recipe, device: Device) -> None:
    """Compare the ranks of a job: versions, kind of device, recipe, options.

    UserError, the same on every rank, with what differs and on which machines.
    """
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import gather_object

    compare(gather_object([facts_here(recipe, device)]))


def facts_here(recipe: Recipe, device: Device) -> dict[str, Any]:
    """What this rank tells the others: a name of its machine and, by what it is, every fact."""
    facts = {f"version of {name}": version for name, version in versions_here().items()}
    facts["version of python"] = ".".join(platform.python_version_tuple()[:2])
    facts["kind of device"] = device.kind if device.has_bfloat16 else f"{device.kind} without bf16"
    facts["options"] = " ".join(options_of(sys.argv[1:]))
    for key, value in flat(recipe.model_dump()).items():
        facts[f"recipe: {key}"] = json.dumps(value, sort_keys=True, default=str)
    return {"host": platform.node(), "rank": int(os.environ.get("RANK", "0")), "facts": facts}


def options_of(arguments: Sequence[str]) -> list[str]:
    """The options of a command line that all ranks must have been given alike. What --set says is
    in the recipe."""
    found: list[str] = []
    given = iter(arguments)
    for argument in given:
        name, _, value = argument.partition("=")
        if name in (*_OF_THE_MACHINE, "--set"):
            if not value:
                next(given, None)
        elif not argument.endswith((".yaml", ".yml")):
            found.append(argument)
    return found


def compare(ranks: Sequence[dict[str, Any]]) -> None:
    """UserError for facts that are not the same on all ranks, in the order of the first one's."""
    names = dict.fromkeys(name for rank in ranks for name in rank["facts"])
    problems = [_difference(name, ranks) for name in names
                if len({rank["facts"].get(name) for rank in ranks}) > 1]
    if len(problems) > _MOST_SHOWN:
        more = len(problems) - _MOST_SHOWN
        problems = [*problems[:_MOST_SHOWN], Problem(f"… and {more} more differences")]
    if problems:
        raise UserError(problems=problems)


def _difference(name: str, ranks: Sequence[dict[str, Any]]) -> Problem:
    by_value: dict[str, list[dict[str, Any]]] = {}
    for rank in ranks:
        by_value.setdefault(rank["facts"].get(name) or "none", []).append(rank)
    told = "; ".join(f"{_short(value)} on {_where(those)}" for value, those in by_value.items())
    what, remedy = name, "install the same version everywhere"
    if name.startswith("recipe: "):
        what, remedy = name.removeprefix("recipe: "), "give every rank the same recipe"
    elif name == "options":
        remedy = "give the same command on every machine"
    elif name == "kind of device":
        remedy = "use machines of one kind, or LORAFIT_DEVICE=cpu on all of them"
    return Problem(f"the ranks differ: {told}", what, remedy)


def _where(ranks: Sequence[dict[str, Any]]) -> str:
    """`node1 (ranks 0, 1) and node2 (rank 2)`, with the rest counted."""
    by_host: dict[str, list[int]] = {}
    for rank in ranks:
        by_host.setdefault(rank["host"], []).append(rank["rank"])
    shown = [f"{host} (rank{'s' if len(numbers) > 1 else ''} {_listed(numbers)})"
             for host, numbers in list(by_host.items())[:4]]
    if len(by_host) > len(shown):
        shown.append(f"{len(by_host) - len(shown)} more machines")
    return " and ".join(shown)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:4])) + (", …" if len(numbers) > 4 else "")


def _short(value: str) -> str:
    return value if len(value) <= _LONGEST else value[:_LONGEST] + "…"
