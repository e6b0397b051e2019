"""Which way a run is spread, and what speaks against one."""

import os
from collections.abc import Callable
from typing import Any

from lorafit.errors import UserError
from lorafit.model.device import device_memory_bytes
from lorafit.recipe import auto
from lorafit.recipe.auto import Decision
from lorafit.recipe.schema import Recipe
from lorafit.train.strategy.replicated import Replicated
from lorafit.train.strategy.sharded import Sharded
from lorafit.train.strategy.strategy import Strategy
from lorafit.train.strategy.wanted import KEY, Wanted

_SHARDED_QUANTIZATION = ("none", "nf4", "fp4")


def choose(wanted: Wanted, recipe: Recipe, accelerator: Any, base_bytes: int,
           stored: str | None) -> tuple[Strategy, Decision | None]:
    """How this run is spread, with the reason; no decision where one process is alone.

    base_bytes: of the base's weights as they are held. stored: the format of a base that is
    quantised in its files. UserError where the wanted way cannot be had.
    """
    if accelerator.num_processes == 1 and not wanted.cpu_offload:
        return Strategy(accelerator.device), None
    reason = why_not_sharded(recipe, stored)
    on_a_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    memory = device_memory_bytes(accelerator.device)
    if accelerator.device.type == "cpu":
        memory //= on_a_machine
    decision = auto.strategy("fsdp" if wanted.cpu_offload else wanted.strategy,
                             accelerator.num_processes, base_bytes, memory, reason)
    if decision.value == "fsdp":
        if reason is not None:
            raise UserError(f"cannot be sharded: {reason}", f"{KEY} fsdp", "use --strategy ddp")
        return Sharded(accelerator, offloads=wanted.cpu_offload), decision
    return Replicated(accelerator), decision


def why_not_sharded(recipe: Recipe, stored: str | None) -> str | None:
    """Why base and adapter of a recipe cannot be cut up among ranks; None where they can."""
    checks: tuple[tuple[Callable[[], bool], str], ...] = (
        (lambda: bool(recipe.adapter.row.why_not_sharded), recipe.adapter.row.why_not_sharded),
        (lambda: stored is not None, f"the base is stored as {stored}, whose layers keep what "
                                     "belongs to their weights beside them"),
        (lambda: recipe.model.quantization not in _SHARDED_QUANTIZATION,
         f"{recipe.model.quantization} layers keep what belongs to their weights beside them; nf4 "
         "can be"),
        (lambda: recipe.training.optimizer == "adamw_8bit",
         "adamw_8bit rounds its state in blocks of whole weights"),
        (lambda: recipe.training.activation_offloading,
         "activation_offloading moves what is cut up already"),
    )
    return next((reason for is_so, reason in checks if is_so()), None)
