"""Put the fast forms on a model with its adapter, each where it agrees with the plain one."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorafit.model.adapters.lora import base_name, lora_layers
from lorafit.model.fast import linear, mlp, proof
from lorafit.model.fast.head import OutputHead, find_head, hidden_states
from lorafit.model.inventory import layer_kind
from lorafit.recipe.auto import Decision


@dataclass(frozen=True)
class Unit:
    """Modules that become fast together: layers that share an input, or one MLP.

    calls: what is called with an input of `width` numbers a token. kind: units of one kind compute
    alike, so one of them is compared for all. make: gives them their fast form and returns what
    takes it back.
    """

    calls: tuple[Any, ...]
    width: int
    kind: str
    make: Callable[[], Callable[[], None]]


@dataclass(frozen=True)
class FastPath:
    """head: computes the loss from hidden states, None where the model's logits are taken.
    decisions: what was made fast and what was not, with the reasons."""

    head: OutputHead | None
    decisions: list[Decision]


def speed_up(adapted: Any) -> FastPath:
    """Make a model with an adapter fast, in place. Draws nothing from torch's generators.

    Nothing is changed that computes something else: each kind of unit is compared with what it
    was, outputs and gradients, on this device.
    """
    weight = adapted.get_base_model().get_input_embeddings().weight
    device, dtype = weight.device, weight.dtype
    with proof.stirred(adapted):
        head, head_decision, together = _watch(adapted, device, dtype)
        plain: Counter[str] = Counter()
        fast: Counter[str] = Counter()
        grouped = _layer_units(adapted, together, plain)
        _apply(grouped, fast, plain, device, dtype)
        mlps: Counter[str] = Counter()
        refused: Counter[str] = Counter()
        _apply(_mlp_units(adapted), mlps, refused, device, dtype)
    decisions = [head_decision]
    if fast or plain:
        decisions.append(_decision("adapter layers", fast, plain, "one function a layer, or for "
                                   "the layers of one input"))
    if mlps or refused:
        decisions.append(_decision("gated MLPs", mlps, refused, "one function, which computes the "
                                   "product of gate and up again"))
    return FastPath(head, decisions)


def _watch(adapted: Any, device: torch.device, dtype: torch.dtype
           ) -> tuple[OutputHead | None, Decision, list[list[Any]]]:
    """One forward pass: does the head's loss start from the model's logits, and which layers with
    adapters are given the same tensor?"""
    calls: list[tuple[int, Any, Tensor]] = []  # the tensors are kept, so that none is reused

    def note(module: Any, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            calls.append((id(args[0]), module, args[0]))

    layers = [layer for _, layer in lora_layers(adapted)] if hasattr(adapted, "peft_config") else []
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    row = proof.small_row(adapted, device)
    try:
        with torch.no_grad():
            logits = adapted(**row, use_cache=False).logits.float().flatten(0, 1)
    finally:
        for hook in hooks:
            hook.remove()
    head = find_head(adapted)
    key = "loss"
    if isinstance(head, str):
        return None, Decision(key, "plain", f"from the model's logits: {head}"), _groups(calls)

    def ours() -> Sequence[Tensor]:
        with torch.no_grad():
            states = hidden_states(head, row)
            return [head.shaping.of(head.layer(states))]

    wrong = proof.agrees(ours, [logits], dtype)
    if wrong is not None:
        return None, Decision(key, "plain", f"from the model's logits: its head {wrong}"), \
            _groups(calls)
    return head, Decision(key, "fast", "logits of supervised tokens only, a chunk at a time, none "
                          "kept"), _groups(calls)


def _groups(calls: Sequence[tuple[int, Any, Tensor]]) -> list[list[Any]]:
    """Layers that were given the same tensor, in the order of their calls. A layer that was called
    twice stays alone."""
    times = Counter(id(layer) for _, layer, _ in calls)
    by_input: dict[int, list[Any]] = {}
    for key, layer, _ in calls:
        if times[id(layer)] == 1:
            by_input.setdefault(key, []).append(layer)
    return [group for group in by_input.values() if len(group) > 1]


def _layer_units(adapted: Any, together: Sequence[Sequence[Any]], plain: Counter[str]
                 ) -> list[Unit]:
    """Layers of LoRA that can be fast; those that cannot are counted in `plain` by reason."""
    if not hasattr(adapted, "peft_config"):
        return []
    names = {}
    for name, layer in lora_layers(adapted):
        if (reason := linear.why_not_fast(layer)) is None:
            names[id(layer)] = layer_kind(base_name(name)), layer
        else:
            plain[f"{layer_kind(base_name(name))}: {reason}"] += 1
    units, seen = [], set()
    groups = [[layer for layer in group if id(layer) in names] for group in together]
    for group in [*groups, *([layer] for _, layer in names.values())]:
        members = [layer for layer in group if id(layer) not in seen]
        seen |= {id(layer) for layer in members}
        if not members:
            continue
        shared = [members] if len(members) > 1 else []
        kind = ", ".join(f"{names[id(layer)][0]} {_shape(layer)}" for layer in members)
        units.append(Unit(tuple(members), members[0].lora_A[linear.ADAPTER].weight.shape[1], kind,
                          partial(linear.make_fast, members, shared)))
    return units


def _mlp_units(adapted: Any) -> list[Unit]:
    units = []
    for name, module, activation in mlp.gated_mlps(adapted):
        width = getattr(module.gate_proj, "base_layer", module.gate_proj).in_features
        parts = (module.gate_proj, module.up_proj, module.down_proj)
        kind = f"{layer_kind(base_name(name))} {' '.join(map(_shape, parts))}"
        units.append(Unit((module,), width, kind,
                          partial(mlp.make_fast, [(module, activation)])))
    return units


def _apply(units: Sequence[Unit], fast: Counter[str], plain: Counter[str], device: torch.device,
           dtype: torch.dtype) -> None:
    """Make units fast, if the first of their kind agrees with what it was."""
    verdicts: dict[str, str | None] = {}
    for unit in units:
        if unit.kind not in verdicts:
            wanted = proof.outcome(unit.calls, unit.width, dtype, device)
            undo = unit.make()
            verdicts[unit.kind] = proof.agrees(
                partial(proof.outcome, unit.calls, unit.width, dtype, device), wanted, dtype)
            if verdicts[unit.kind] is not None:
                undo()
        elif verdicts[unit.kind] is None:
            unit.make()
        wrong = verdicts[unit.kind]
        if wrong is None:
            fast[unit.kind] += len(unit.calls)
        else:
            plain[f"{unit.kind}: {wrong}"] += len(unit.calls)


def _decision(key: str, fast: Counter[str], plain: Counter[str], how: str) -> Decision:
    value = f"{fast.total()} of {fast.total() + plain.total()} fast"
    reasons = "; ".join(f"{count} {what}" for what, count in plain.items())
    if not fast:
        return Decision(key, value, reasons)
    return Decision(key, value, f"{how}; plain: {reasons}" if plain else how)


def _shape(layer: nn.Module) -> str:
    """What matters about how a layer computes: its kind of base, its sizes, its adapter."""
    base: Any = getattr(layer, "base_layer", layer)
    adapter = getattr(layer, "lora_A", {})
    rank = adapter[linear.ADAPTER].weight.shape[0] if linear.ADAPTER in adapter else 0
    bias = "+b" if base.bias is not None else ""
    sized: Any = layer  # peft's layers know their sizes, also where the base's class does not
    return f"{type(base).__name__} {sized.out_features}x{sized.in_features}{bias} r{rank}"
