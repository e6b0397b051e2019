"""What the command line, or the launcher that started this, asks of how a run is spread."""

import os
from dataclasses import dataclass, replace

from lorafit.errors import UserError
from lorafit.recipe.schema import Recipe

KEY = "--strategy"
CONTEXT_KEY = "--context-parallel"
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
    with. context_parallel: how many ranks share the tokens of each row."""

    strategy: str = "auto"
    cpu_offload: bool = False
    context_parallel: int = 1


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
    if is_sharded and (reason := why_not_sharded(recipe)) is not None:
        raise cannot_be_sharded(reason, wanted)
    if wanted.context_parallel > 1:
        _refuse_slices(recipe, f"{CONTEXT_KEY} {wanted.context_parallel}")


def _refuse_slices(recipe: Recipe, where: str) -> None:
    """UserError where a recipe asks for what cannot be computed in slices of rows."""
    row = recipe.adapter.row
    if recipe.training.batching == "padded":
        raise UserError("padded rows cannot be cut into slices", where,
                        "--set training.batching=padding_free, which trains the same")
    if recipe.model.attention not in ("auto", "sdpa"):
        raise UserError(f"model.attention: {recipe.model.attention} does not meet other ranks",
                        where, "--set model.attention=sdpa: on GPUs that is torch's FlashAttention")
    if row.why_not_packed or row.calls_layers:
        reason = row.why_not_packed or "it calls layers itself, with whole rows"
        raise UserError(f"adapter.method {recipe.adapter.method} cannot be computed in slices of "
                        f"rows: {reason}", where, f"leave {CONTEXT_KEY} out")


def refuse_ranks(wanted: Wanted, ranks: int, batch_size: int) -> None:
    """UserError where so many ranks cannot share rows as wanted. batch_size: rows of a step."""
    sharing = wanted.context_parallel
    if ranks % sharing:
        many = "1 process" if ranks == 1 else f"{ranks} processes"
        raise UserError(
            f"{many} cannot be divided into groups of {sharing}",
            f"{CONTEXT_KEY} {sharing}",
            f"use --num-processes {-(-ranks // sharing) * sharing}, or another {CONTEXT_KEY}")
    if sharing > 1 and ranks // sharing > batch_size:
        raise UserError(f"{ranks // sharing} groups of processes for a batch of {batch_size}",
                        "training.batch_size", f"raise it, or use a larger {CONTEXT_KEY}")


def with_environment(wanted: Wanted) -> Wanted:
    """The same with what `accelerate launch` was configured for. UserError for engines that there
    are not.

    Taken out of the environment, because lorafit shards the model itself.
    """
    for name, remedy in _OTHER_ENGINES.items():
        if _is_set(f"ACCELERATE_USE_{name}"):
            raise UserError(f"{name} is not supported", f"ACCELERATE_USE_{name}", remedy)
    if _is_set("ACCELERATE_USE_PARALLELISM_CONFIG"):
        raise UserError("accelerate's parallelism is not used", "ACCELERATE_USE_PARALLELISM_CONFIG",
                        f"unset it, and use {CONTEXT_KEY} N for context parallelism")
    if not _is_set("ACCELERATE_USE_FSDP"):
        return wanted
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    if wanted.strategy != "auto" or os.environ.get("WORLD_SIZE", "1") == "1":
        return wanted
    return replace(wanted, strategy="fsdp",
                   cpu_offload=wanted.cpu_offload or _is_set("FSDP_OFFLOAD_PARAMS"))


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def why_not_sharded(recipe: Recipe, why_whole: str | None = None) -> str | None:
    """Why base and adapter of a recipe cannot be cut up among ranks; None where they can.

    why_whole: what is known of the base itself.
    """
    quantization = recipe.model.quantization
    if quantization not in _SHARDED_QUANTIZATION:
        return (f"{quantization} layers keep what belongs to their weights beside them; nf4 can "
                "be")
    if recipe.training.optimizer == "adamw_8bit":
        return "adamw_8bit rounds its state in blocks of whole weights"
    if recipe.training.activation_offloading:
        return "activation_offloading moves what is cut up already"
    return recipe.adapter.row.why_not_sharded or why_whole


def cannot_be_sharded(reason: str, wanted: Wanted) -> UserError:
    is_offload = wanted.cpu_offload and wanted.strategy == "auto"
    where = "--cpu-offload" if is_offload else f"{KEY} {wanted.strategy}"
    without = " without --cpu-offload" if wanted.cpu_offload else ""
    return UserError(f"cannot be sharded: {reason}", where, f"use {KEY} ddp{without}")
