"""What the command line, or the launcher that started this, asks of how a run is spread."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from lorafit.errors import UserError
from lorafit.recipe.schema import Recipe

KEY = "--strategy"
NAMES = ("auto", "ddp", "fsdp", "hsdp")
_SHARDED_QUANTIZATION = ("none", "nf4", "fp4")
_OTHER_ENGINES = {
    "DEEPSPEED": "configure accelerate for several GPUs alone, and use --strategy fsdp in place of "
                 "ZeRO-3, with --cpu-offload in place of its offloading; ddp keeps no more than "
                 "ZeRO-2 would beside the frozen base",
    "MEGATRON_LM": "unset it, or configure accelerate for FSDP or for several GPUs alone",
}


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for. strategy: one of NAMES (hsdp: sharded within each machine).
    cpu_offload: keep the parts of a sharded base in the host's memory while they are not computed
    with."""

    strategy: str = "auto"
    cpu_offload: bool = False


AUTO = Wanted()


def refuse_misfit(wanted: Wanted, recipe: Recipe) -> None:
    """UserError for a name that does not exist, options that do not go together, or a recipe that
    cannot be spread so."""
    if wanted.strategy not in NAMES:
        raise UserError(f"there is no strategy {wanted.strategy!r}", KEY,
                        f"use {', '.join(NAMES[:-1])} or {NAMES[-1]}")
    if wanted.cpu_offload and wanted.strategy == "ddp":
        raise UserError("with ddp every device holds the whole base", "--cpu-offload",
                        "use --strategy fsdp, or leave it out")
    is_sharded = wanted.strategy in ("fsdp", "hsdp") or wanted.cpu_offload
    if is_sharded and (reason := why_not_sharded(recipe, None)) is not None:
        raise cannot_be_sharded(reason, wanted.strategy)


def with_environment(wanted: Wanted) -> Wanted:
    """The same with what `accelerate launch` was configured for. UserError for engines that there
    are not.

    Taken out of the environment, because lorafit shards the model itself.
    """
    for name, remedy in _OTHER_ENGINES.items():
        if _is_set(f"ACCELERATE_USE_{name}"):
            raise UserError(f"{name} is not supported", f"ACCELERATE_USE_{name}", remedy)
    if not _is_set("ACCELERATE_USE_FSDP"):
        return wanted
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    if wanted.strategy != "auto" or os.environ.get("WORLD_SIZE", "1") == "1":
        return wanted
    return Wanted("fsdp", wanted.cpu_offload or _is_set("FSDP_OFFLOAD_PARAMS"))


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def why_not_sharded(recipe: Recipe, stored: str | None, is_layered: bool = True) -> str | None:
    """Why base and adapter of a recipe cannot be cut up among ranks; None where they can."""
    checks: tuple[tuple[Callable[[], bool], str], ...] = (
        (lambda: bool(recipe.adapter.row.why_not_sharded), recipe.adapter.row.why_not_sharded),
        (lambda: stored is not None, f"the base is stored as {stored}, whose layers keep what "
                                     "belongs to their weights beside them"),
        (lambda: not is_layered, "its decoder layers, one of which is computed at a time, were not "
                                 "found"),
        (lambda: recipe.model.quantization not in _SHARDED_QUANTIZATION,
         f"{recipe.model.quantization} layers keep what belongs to their weights beside them; nf4 "
         "can be"),
        (lambda: recipe.training.optimizer == "adamw_8bit",
         "adamw_8bit rounds its state in blocks of whole weights"),
        (lambda: recipe.training.activation_offloading,
         "activation_offloading moves what is cut up already"),
    )
    return next((reason for is_so, reason in checks if is_so()), None)


def cannot_be_sharded(reason: str, strategy: str) -> UserError:
    return UserError(f"cannot be sharded: {reason}", f"{KEY} {strategy}", f"use {KEY} ddp")
