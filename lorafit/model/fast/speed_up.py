"""Put the fast forms on a model with its adapter, each where it agrees with the plain one."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorafit.model.adapters.lora import base_name, lora_layers
from lorafit.model.fast import block as block_of
from lorafit.model.fast import experts, linear, mlp, norm, proof
from lorafit.model.fast.block import attention_blocks
from lorafit.model.fast.head import OutputHead, find_head, hidden_states
from lorafit.model.fast.watch import Seen, watch
from lorafit.model.weights import layer_kind
from lorafit.recipe.auto import Decision

AtHand = Callable[[Sequence[nn.Module]], AbstractContextManager[None]]


@dataclass(frozen=True)
class Unit:
    """Modules that become fast together: layers that share an input, or one MLP, norm or block.

    label: what a person calls them. kind: units of one kind compute alike, so one of them is
    compared for all. called: the modules. outcome: what they compute from made-up inputs, outputs
    and gradients. make: each gives them a fast form and returns what takes it back; the first that
    agrees with the plain one is kept.
    """

    label: str
    kind: str
    called: Sequence[nn.Module]
    outcome: Callable[[], Sequence[Tensor]]
    make: Sequence[Callable[[], Callable[[], None]]]


@dataclass(frozen=True)
class FastPath:
    """head: computes the loss from hidden states, None where the model's logits are taken.
    decisions: what was made fast and what was not, with the reasons. copied_weights: how many
    numbers of the base are still computed anew in each step, with the adapter added."""

    head: OutputHead | None
    decisions: list[Decision]
    copied_weights: int


def speed_up(adapted: Any, at_hand: AtHand = lambda modules: nullcontext()) -> FastPath:
    """Make a model with an adapter fast, in place. Draws nothing from torch's generators.

    Nothing is changed that computes something else: each kind of unit is compared with what it
    was, outputs and gradients, on this device. What holds other units comes after them. `at_hand`
    gives the whole weights of modules that are called by themselves, where they are cut up.
    """
    weight = adapted.get_base_model().get_input_embeddings().weight
    device, dtype = weight.device, weight.dtype
    with proof.stirred(adapted):
        seen = watch(adapted, device)
        head, decision = _head(adapted, seen, dtype)
        decisions = [decision]
        plain: Counter[str] = Counter()
        layers = _layer_units(adapted, seen.together, plain, device, dtype)
        plain_experts: Counter[str] = Counter()
        for key, how, units, refused in (
            ("adapter layers", "one function a layer, or for the layers of one input", layers,
             plain),
            ("gated MLPs", "one function, which computes the product of gate and up again",
             _mlp_units(adapted, device, dtype), Counter()),
            ("experts", "one function a layer, in which no weight is changed",
             _expert_units(adapted, seen, plain_experts, device, dtype), plain_experts),
            ("norms", "one function each", _norm_units(adapted, device, dtype), Counter()),
            ("attention blocks", "queries and keys are rotated by one function each",
             _block_units(adapted, seen, device, dtype), Counter()),
        ):
            fast = _apply(units, refused, dtype, at_hand)
            if fast or refused:
                decisions.append(_decision(key, fast, refused, how))
        if head is not None:
            head = _with_last_mlp(head, seen, dtype)
    return FastPath(head, decisions, experts.copied_weights(adapted))


def _head(adapted: Any, seen: Seen, dtype: torch.dtype) -> tuple[OutputHead | None, Decision]:
    """The head whose loss starts from the model's own logits, if there is one."""
    head = find_head(adapted)
    if isinstance(head, str):
        return None, Decision("loss", "plain", f"from the model's logits: {head}")

    def ours() -> Sequence[Tensor]:
        with torch.no_grad():
            states = hidden_states(head, seen.row)
            return [head.shaping.of(head.layer(states))]

    if (wrong := proof.agrees(ours, [seen.logits], dtype)) is not None:
        return None, Decision("loss", "plain", f"from the model's logits: its head {wrong}")
    return head, Decision("loss", "fast", "for supervised tokens only, logits a chunk at a time, "
                          "none kept")


@torch.no_grad()
def _with_last_mlp(head: OutputHead, seen: Seen, dtype: torch.dtype) -> OutputHead:
    """The head, with the last layer's MLP computed for the tokens with a loss alone, where their
    states stay what they were. Not with activation checkpointing, which computes the layer again
    when the tokens are no longer known."""
    layers: Any = getattr(head.backbone, "layers", None)
    last = getattr(layers[-1], "mlp", None) if layers else None
    if not isinstance(last, mlp.FastGatedMlp) or getattr(
            layers[-1], "gradient_checkpointing", False):
        return head
    places = torch.tensor([1, proof.TOKENS - 2], device=seen.logits.device)
    able = replace(head, last_mlp=last)
    wanted = [hidden_states(head, seen.row)[places]]

    def ours() -> list[Tensor]:
        with able.only(places):
            return [hidden_states(head, seen.row)[places]]

    return able if proof.agrees(ours, wanted, dtype) is None else head


def _layer_units(adapted: Any, together: Sequence[Sequence[Any]], plain: Counter[str],
                 device: torch.device, dtype: torch.dtype) -> list[Unit]:
    """Layers of LoRA that can be fast; those that cannot are counted in `plain` by reason."""
    if not hasattr(adapted, "peft_config"):
        return []
    names = {}
    for name, layer in lora_layers(adapted):
        if experts.is_on_experts(layer):
            continue  # _expert_units
        if (reason := linear.why_not_fast(layer)) is None:
            names[id(layer)] = layer_kind(base_name(name)), layer
        else:
            plain[f"{layer_kind(base_name(name))}: {reason}"] += 1
    units, done = [], set()
    groups = [[layer for layer in group if id(layer) in names] for group in together]
    for group in [*groups, *([layer] for _, layer in names.values())]:
        members = [layer for layer in group if id(layer) not in done]
        done |= {id(layer) for layer in members}
        if not members:
            continue
        label = ", ".join(names[id(layer)][0] for layer in members)
        kind = f"{label} {' '.join(map(_shape, members))}"
        width = members[0].lora_A[linear.ADAPTER].weight.shape[1]
        units.append(Unit(label, kind, members,
                          partial(proof.outcome, members, width, dtype, device),
                          [partial(linear.make_fast, members)]))
    return units


def _mlp_units(adapted: Any, device: torch.device, dtype: torch.dtype) -> list[Unit]:
    units = []
    for name, module, activation in mlp.gated_mlps(adapted):
        parts = (module.gate_proj, module.up_proj, module.down_proj)
        label = layer_kind(base_name(name))
        kind = f"{label} {' '.join(map(_shape, parts))}"
        units.append(Unit(label, kind, [module],
                          partial(proof.outcome, [module], parts[0].in_features, dtype, device),
                          [partial(mlp.make_fast, module, activation)]))
    return units


def _expert_units(adapted: Any, seen: Seen, plain: Counter[str], device: torch.device,
                  dtype: torch.dtype) -> list[Unit]:
    """The experts of each layer; those that cannot be fast are counted in `plain` by reason."""
    units = []
    for name, module in experts.expert_modules(adapted):
        label = layer_kind(base_name(name))
        if (reason := experts.why_not_fast(module)) is not None:
            plain[f"{label}: {reason}"] += 1
            continue
        index, weights = seen.routes.get(id(module), (None, None))
        if index is None or weights is None or len(index) != proof.TOKENS:
            plain[f"{label}: they are not given a row's tokens and where each is sent"] += 1
            continue

        def called(x: Tensor, module: Any = module, index: Tensor = index,
                   weights: Tensor = weights) -> Tensor:
            # The weights of a token's experts depend on it, so that their gradient shows.
            output: Tensor = module(x[0], index, weights + 0.1 * x[0, :, :index.shape[1]])
            return output

        units.append(Unit(label, f"{label} {experts.shape_of(module)}", [module],
                          partial(proof.outcome, [module], experts.width_of(module), dtype, device,
                                  called),
                          [partial(experts.make_fast, module, gate)
                           for gate in experts.gates(module)]))
    return units


def _norm_units(adapted: Any, device: torch.device, dtype: torch.dtype) -> list[Unit]:
    units = []
    for _, module in norm.norms(adapted):
        if module.weight.dtype != dtype:
            continue
        width = len(module.weight)
        label = type(module).__name__
        kind = f"{label} {width} {norm.epsilon_of(module)}"
        units.append(Unit(label, kind, [module],
                          partial(proof.outcome, [module], width, dtype, device),
                          [partial(norm.make_fast, module, adds_one=adds_one)
                           for adds_one in (False, True)]))
    return units


def _block_units(adapted: Any, seen: Seen, device: torch.device, dtype: torch.dtype) -> list[Unit]:
    """Attention blocks, where the model computes attention by document."""
    if "documents" not in seen.row:
        return []
    units = []
    for _, block in attention_blocks(adapted):
        given = seen.arguments.get(id(block))
        if given is None or "hidden_states" not in given:
            continue
        settings = {key: value for key, value in vars(block).items()
                    if isinstance(value, bool | int | float | str | None) and key != "layer_idx"}
        label = type(block).__name__
        kind = f"{label} {sorted(settings.items(), key=str)}"
        width = given["hidden_states"].shape[-1]
        rest = {key: value for key, value in given.items() if key != "hidden_states"}

        def called(x: Tensor, block: Any = block, rest: dict[str, Any] = rest) -> Tensor:
            output: Tensor = block(hidden_states=x, **rest)[0]
            return output

        units.append(Unit(label, kind, [block],
                          partial(proof.outcome, [block], width, dtype, device, called),
                          [partial(block_of.make_fast, block)]))
    return units


def _apply(units: Sequence[Unit], plain: Counter[str], dtype: torch.dtype,
           at_hand: AtHand) -> Counter[str]:
    """Make units fast, where the first of their kind agrees with what it was; count them by kind.
    Those that do not are counted in `plain` by reason."""
    verdicts: dict[str, tuple[int, str | None]] = {}  # which form is kept, or what is wrong
    fast: Counter[str] = Counter()
    for unit in units:
        if unit.kind not in verdicts:
            with at_hand(unit.called):
                verdicts[unit.kind] = _first_that_agrees(unit, dtype)
        elif verdicts[unit.kind][1] is None:
            unit.make[verdicts[unit.kind][0]]()
        wrong = verdicts[unit.kind][1]
        if wrong is None:
            fast[unit.label] += len(unit.called)
        else:
            plain[f"{unit.label}: {wrong}"] += len(unit.called)
    return fast


def _first_that_agrees(unit: Unit, dtype: torch.dtype) -> tuple[int, str | None]:
    wanted = unit.outcome()
    wrong: str | None = None
    for number, make in enumerate(unit.make):
        undo = make()
        found = proof.agrees(unit.outcome, wanted, dtype)
        if found is None:
            return number, None
        wrong = wrong or found
        undo()
    return 0, wrong


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
