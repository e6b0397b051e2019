"""Which way a run is spread, and what speaks against one."""

import os
from typing import Any

from lorafit.errors import UserError
from lorafit.model.device import device_memory_bytes
from lorafit.recipe import auto
from lorafit.recipe.auto import Decision
from lorafit.recipe.schema import Recipe
from lorafit.train.strategy.replicated import Replicated
from lorafit.train.strategy.sharded import Sharded
from lorafit.train.strategy.strategy import Strategy
from lorafit.train.strategy.wanted import KEY, Wanted, cannot_be_sharded, why_not_sharded


def choose(wanted: Wanted, recipe: Recipe, accelerator: Any, base_bytes: int,
           why_whole: str | None) -> tuple[Strategy, Decision | None]:
    """How this run is spread, with the reason; no decision where one process is alone and nothing
    else was asked for.

    base_bytes: of the base's weights as they are held. why_whole: why the base cannot be cut up.
    UserError where the wanted way cannot be had.
    """
    if accelerator.num_processes == 1 and not wanted.cpu_offload:
        alone = Decision("strategy", "single", "there is one process, which shares with nobody")
        return Strategy(accelerator.device), None if wanted.strategy == "auto" else alone
    reason = why_not_sharded(recipe, why_whole)
    ranks = accelerator.num_processes
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    memory = device_memory_bytes(accelerator.device)
    if accelerator.device.type == "cpu":
        memory //= neighbours
    setting = "fsdp" if wanted.cpu_offload and wanted.strategy == "auto" else wanted.strategy
    decision = auto.strategy(setting, ranks, neighbours, base_bytes, memory, reason)
    if decision.value == "ddp":
        return Replicated(accelerator, slices=wanted.context_parallel), decision
    if reason is not None:
        raise cannot_be_sharded(reason, wanted)
    replicas = 1
    if decision.value == "hsdp":
        replicas, rest = divmod(ranks, neighbours)
        if replicas == 1 or rest:
            raise UserError(f"{ranks} ranks are not several machines of {neighbours} each",
                            f"{KEY} hsdp", f"use {KEY} fsdp")
    return Sharded(accelerator, offloads=wanted.cpu_offload, replicas=replicas,
                   slices=wanted.context_parallel), decision

