"""One forward pass of a model with an adapter, and what it showed of how the parts are called."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorafit.model.adapters.lora import lora_layers
from lorafit.model.fast import experts, proof
from lorafit.model.fast.block import attention_blocks


@dataclass(frozen=True)
class Seen:
    """What one forward pass showed. row: what the model was given. logits: (tokens, V). together:
    layers with adapters that were given the same tensor. arguments: of attention blocks. routes:
    of experts, the experts of each token and their weights, (tokens, K) both."""

    row: dict[str, Any]
    logits: Tensor
    together: list[list[Any]]
    arguments: dict[int, dict[str, Any]]
    routes: dict[int, tuple[Tensor, Tensor]]


@torch.no_grad()
def watch(adapted: Any, device: torch.device) -> Seen:
    """Run a short row through the model and note what its parts are given."""
    calls: list[tuple[int, Any, Tensor]] = []  # the tensors are kept, so that none is reused
    arguments: dict[int, dict[str, Any]] = {}
    routes: dict[int, tuple[Tensor, Tensor]] = {}

    def note(module: Any, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            calls.append((id(args[0]), module, args[0]))

    def note_arguments(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not args:
            arguments[id(module)] = kwargs

    def note_routes(module: Any, args: tuple[Any, ...]) -> None:
        if len(args) == 3:
            routes[id(module)] = args[1:]

    layers = [layer for _, layer in lora_layers(adapted)] if hasattr(adapted, "peft_config") else []
    blocks = [block for _, block in attention_blocks(adapted)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    hooks += [block.register_forward_pre_hook(note_arguments, with_kwargs=True)
              for block in blocks]
    hooks += [module.register_forward_pre_hook(note_routes)
              for _, module in experts.expert_modules(adapted)]
    row = proof.small_row(adapted, device)
    try:
        logits = adapted(**row, use_cache=False).logits.float().flatten(0, 1)
    finally:
        for hook in hooks:
            hook.remove()
    return Seen(row, logits, _groups(calls), arguments, routes)


def _groups(calls: Sequence[tuple[int, Any, Tensor]]) -> list[list[Any]]:
    """Layers that were given the same tensor, in the order of their calls. A layer that was called
    twice stays alone."""
    times = Counter(id(layer) for _, layer, _ in calls)
    by_input: dict[int, list[Any]] = {}
    for key, layer, _ in calls:
        if times[id(layer)] == 1:
            by_input.setdefault(key, []).append(layer)
    return [group for group in by_input.values() if len(group) > 1]
