"""What a model offers to adapt, what it costs, and what a recipe makes of it; without weights."""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from lorafit.model.adapters.add import add_adapter
from lorafit.model.adapters.facts import describe
from lorafit.model.choice import low_rank_cost, realised_rank
from lorafit.model.inventory import is_norm, is_tied, stack_of, weights_of
from lorafit.model.named_modules import matched_names
from lorafit.model.targets import resolve_targets
from lorafit.model.weights import LINEAR, Part, Stack, Weight, endings, layer_kind
from lorafit.recipe.adapter import Adapter

# A trained parameter in float32: its value, its gradient and AdamW's two moments.
BYTES_PER_TRAINED = 4 * 4

_MLP: tuple[Part, ...] = ("mlp", "shared experts", "experts")
_ORDER: tuple[Part, ...] = (*LINEAR, "router", "embeddings", "head")


@dataclass(frozen=True)
class Kind:
    """Weights that are alike. `parameters` counts them together; so does `lora_parameters`, what
    LoRA on all of them would train at `rank`. `adapted`: how many of them the recipe adapts."""

    kind: str
    part: Part
    weights: int
    shape: tuple[int, ...]
    parameters: int
    rank: int
    lora_parameters: int
    lora_bytes: int
    adapted: int


@dataclass(frozen=True)
class Choice:
    """A ready-made target_modules, and what LoRA on it would train."""

    name: str
    target_modules: list[str]
    lora_parameters: int


@dataclass(frozen=True)
class Survey:
    """A model's weights by kind, what an adapter section adapts of them, and its exact cost.

    trained_parameters is None where they follow from the weights themselves. trained_bytes:
    weights, gradients and AdamW's moments in float32. norms: how many, and their parameters.
    uncounted: parameters that belong to nothing listed (biases, convolutions).
    """

    model_type: str
    parameters: int
    decoder_layers: int
    experts: int
    active_experts: int | None
    tied: bool
    kinds: list[Kind]
    norms: int
    norm_parameters: int
    uncounted: int
    method: str
    rank: int
    trained_parameters: int | None
    trained_bytes: int | None
    choices: list[Choice]
    remarks: list[str]


def survey(model: Any, section: Adapter, rank: int, stored: str = "none") -> Survey:
    """Everything `lorafit targets` prints. The model is changed: it carries the adapter after.

    `rank` is what costs are given for, where the section does not say another for a layer.
    UserError when the section does not fit the model.
    """
    weights, stack = weights_of(model), stack_of(model)
    targets = resolve_targets(model, section, stored)
    chosen = _adapted(model, section)
    kinds = _kinds(stack, section, rank, weights, chosen)
    norms = [sum(p.numel() for p in module.parameters(recurse=False))
             for module in model.modules() if is_norm(module)]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tied = is_tied(model)
    counted = sum(kind.parameters for kind in kinds if not (tied and kind.part == "head"))
    facts: dict[str, Any] = {
        "model_type": model.config.model_type, "parameters": parameters,
        "decoder_layers": stack.layers, "active_experts": stack.active_experts,
        "experts": max((weight.shape[0] for weight in weights if weight.is_fused), default=0),
        "tied": tied, "kinds": kinds, "norms": len(norms), "norm_parameters": sum(norms),
        "uncounted": parameters - counted - sum(norms),
        "choices": _choices(stack, section, rank, weights), "remarks": targets.remarks,
    }
    trained = None if section.row.needs_weights else describe(
        add_adapter(model, section, 0, "")).trainable_parameters
    return Survey(method=section.method, rank=rank, trained_parameters=trained,
                  trained_bytes=None if trained is None else BYTES_PER_TRAINED * trained, **facts)


def _adapted(model: nn.Module, section: Adapter) -> set[str]:
    """Names of the weights that the section adapts; none where the method has no choice."""
    if section.row.where in ("prompt", "layers"):
        return set()
    return set(matched_names(model, section))


def _kinds(stack: Stack, section: Adapter, rank: int, weights: list[Weight],
           chosen: set[str]) -> list[Kind]:
    alike: dict[tuple[Part, str, tuple[int, ...]], list[Weight]] = {}
    for weight in weights:
        alike.setdefault((weight.part, layer_kind(weight.label), weight.shape), []).append(weight)
    kinds = []
    for (part, kind, shape), group in alike.items():
        own = realised_rank(stack, _lora(section, rank), group[0])
        cost = sum(low_rank_cost(stack, _lora(section, rank), weight) for weight in group)
        adapted = sum(_is_in(weight, chosen) for weight in group)
        kinds.append(Kind(kind, part, len(group), shape, len(group) * math.prod(shape), own, cost,
                          BYTES_PER_TRAINED * cost, adapted))
    return sorted(kinds, key=lambda kind: _ORDER.index(kind.part))


def _is_in(weight: Weight, chosen: set[str]) -> bool:
    """Whether the weight, or the module that a bare one belongs to, is chosen."""
    return weight.name in chosen or (weight.is_parameter
                                     and weight.name.rpartition(".")[0] in chosen)


def _lora(section: Adapter, rank: int) -> Adapter:
    """The section where it is LoRA's, or LoRA at `rank`."""
    return section if section.method == "lora" else Adapter(rank=rank)


def _choices(stack: Stack, section: Adapter, rank: int,
             weights: list[Weight]) -> list[Choice]:
    """Lines for a recipe: attention, the MLPs with all experts, and every linear layer."""
    choices = []
    for name, parts in (("attention only", ("attention",)), ("MLP only", _MLP), ("all", LINEAR)):
        meant = [weight for weight in weights if weight.part in parts]
        others = [weight.label for weight in weights if weight.part not in parts]
        if meant:
            cost = sum(low_rank_cost(stack, _lora(section, rank), weight) for weight in meant)
            choices.append(Choice(name, endings([weight.label for weight in meant], others), cost))
    return choices
