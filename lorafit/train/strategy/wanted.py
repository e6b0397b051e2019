"""What the command line, or the launcher that started this, asks of how a run is spread."""

import os
from dataclasses import dataclass

from lorafit.errors import UserError

KEY = "--strategy"
NAMES = ("auto", "ddp", "fsdp")


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for. strategy: one of NAMES. cpu_offload: keep the parts of a
    sharded base in the host's memory while they are not computed with."""

    strategy: str = "auto"
    cpu_offload: bool = False


AUTO = Wanted()


def refuse_unknown(wanted: Wanted) -> None:
    """UserError for a name that does not exist, or options that do not go together."""
    if wanted.strategy not in NAMES:
        raise UserError(f"there is no strategy {wanted.strategy!r}", KEY,
                        f"use {', '.join(NAMES[:-1])} or {NAMES[-1]}")
    if wanted.cpu_offload and wanted.strategy == "ddp":
        raise UserError("with ddp every device holds the whole base", "--cpu-offload",
                        "use --strategy fsdp, or leave it out")


def with_environment(wanted: Wanted) -> Wanted:
    """The same with what `accelerate launch` was configured for. UserError for engines that there
    are not.

    Taken out of the environment, because lorafit shards the model itself.
    """
    for name in ("DEEPSPEED", "MEGATRON_LM"):
        if _is_set(f"ACCELERATE_USE_{name}"):
            raise UserError(f"{name} is not supported", f"ACCELERATE_USE_{name}",
                            "unset it, or configure accelerate for FSDP or for several GPUs alone")
    if not _is_set("ACCELERATE_USE_FSDP"):
        return wanted
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    if wanted.strategy != "auto" or os.environ.get("WORLD_SIZE", "1") == "1":
        return wanted
    return Wanted("fsdp", wanted.cpu_offload or _is_set("FSDP_OFFLOAD_PARAMS"))


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")
