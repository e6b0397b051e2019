"""Which layers of an architecture a recipe adapts, in peft's words. Works without weights."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from lorafit.model import target_checks as checks
from lorafit.model.choice import (
    chosen_layers,
    chosen_weights,
    ends_in,
    realised_alpha,
    realised_rank,
    refuse_large_ranks,
)
from lorafit.model.inventory import module_words, stack_of, weights_of
from lorafit.model.named_modules import matched_names
from lorafit.model.weights import Stack, Weight, endings
from lorafit.recipe.adapter import Adapter

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Targets:
    """What peft is told to adapt.

    modules: a sorted list of name endings or full names; None where the method has no choice of
    layers. parameters: the same for weights that are no linear layer of their own (fused experts).
    ranks, alphas: where they differ from the recipe's, by patterns of which each layer matches one
    at most, so that their order does not matter. chosen: the weights themselves, in the model's
    order. share_experts: one adapter for all experts of a layer. remarks: what the recipe's words
    do that a reader may not expect.
    """

    modules: list[str] | None
    parameters: list[str] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    chosen: list[Weight] = field(default_factory=list)
    share_experts: bool = False
    remarks: list[str] = field(default_factory=list)


def resolve_targets(model: nn.Module, section: Adapter, stored: str = "none") -> Targets:
    """Match the recipe's words against the model. UserError when something matches nothing.

    `stored` is how the base is quantised, where the model does not show it.
    """
    where, stack = section.row.where, stack_of(model)
    if where in ("prompt", "layers"):
        chosen_layers(stack, section)
        return Targets(None)
    checks.refuse_unmatched(model, section)
    if where != "linear":
        return Targets(module_words(model, matched_names(model, section)))
    weights = weights_of(model)
    checks.refuse_what_only_mixtures_have(section, weights)
    chosen = chosen_weights(stack, section, weights)
    is_lora = section.method == "lora"
    checks.refuse_patterns_of_nothing(section, chosen)
    refuse_large_ranks(stack, section, chosen)
    reached = _reached_as_parameters(model, chosen) if is_lora else []
    held = set(reached)
    if reached:
        checks.refuse_on_parameters(model, section, reached, weights, stored)
    modules = [weight.name for weight in chosen if weight not in held]
    remarks = checks.remarks_on(model, stack, section, weights, chosen, stored)
    return Targets(
        module_words(model, modules), _parameter_words(model, reached),
        *_patterns(stack, section, chosen, reached), chosen=chosen,
        share_experts=is_lora and section.experts == "shared", remarks=remarks,
    )


def unwrap(model: Any) -> torch.nn.Module:
    """The transformers model inside a peft model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _reached_as_parameters(model: nn.Module, chosen: list[Weight]) -> list[Weight]:
    """Weights that peft must be given as parameters: fused ones, those that it renames, and routers
    that are linear layers but return more than y = x·Wᵀ, to which nothing could be added."""
    renamed = set(_renamed(model, chosen))
    return [weight for weight in chosen if weight.is_parameter or weight in renamed
            or (weight.part == "router" and _computes_more(model.get_submodule(weight.name)))]


def _computes_more(module: nn.Module) -> bool:
    return (isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward
            and module.weight.is_floating_point())


def _renamed(model: nn.Module, weights: list[Weight]) -> list[Weight]:
    """Linear layers whose names peft takes for those of experts.

    In transformers 5 the experts of many mixtures became one tensor. So that older adapters still
    load, peft rewrites target_modules for them: gate_proj and up_proj mean the experts'
    gate_up_proj at twice the rank, down_proj the experts' down_proj. In a model that also has dense
    or shared layers of those names, these would be left without an adapter, silently. Given as
    parameters they are left as they are.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    names = {weight.name.rpartition(".")[2] for weight in weights if not weight.is_parameter}
    # Some of a fused pair alone would be refused: all names are asked for at once.
    asked = names | {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
    probe: Any = LoraConfig(target_modules=sorted(asked))
    convert_peft_config_for_transformers(probe, model=model, conversions=None)
    kept = set(probe.target_modules)
    return [weight for weight in weights
            if not weight.is_parameter and weight.name.rpartition(".")[2] not in kept]


def _parameter_words(model: nn.Module, reached: list[Weight]) -> list[str]:
    wanted = {weight.path for weight in reached}
    others = [name for name, _ in model.named_parameters(remove_duplicate=False)
              if name not in wanted]
    return endings([weight.path for weight in reached], others, least=2)


def _patterns(stack: Stack, section: Adapter, chosen: list[Weight],
              reached: list[Weight]) -> tuple[dict[str, int], dict[str, float]]:
    """Ranks and alphas that differ from the recipe's, each by endings that mean only its layers."""
    ranks: dict[int, list[Weight]] = {}
    alphas: dict[float, list[Weight]] = {}
    for weight in chosen:
        rank = realised_rank(stack, section, weight)
        if rank != section.rank:
            ranks.setdefault(rank, []).append(weight)
        alpha = realised_alpha(section, weight, rank)
        if alpha is not None and alpha != section.alpha:
            alphas.setdefault(alpha, []).append(weight)
    return _by_pattern(ranks, chosen, reached), _by_pattern(alphas, chosen, reached)


def _by_pattern(values: dict[Number, list[Weight]], chosen: list[Weight],
                reached: list[Weight]) -> dict[str, Number]:
    patterns = {}
    for value, weights in values.items():
        labels = {weight.label for weight in weights}
        others = [weight.label for weight in chosen if weight.label not in labels]
        # peft compares the names of parameters with their last word, `weight`.
        longer = [weight.label for weight in set(weights) & set(reached)
                  if weight.path.endswith(".weight")]
        for ending in endings(sorted(labels), others):
            patterns[ending + (r"(\.weight)?" if ends_in(longer, [ending]) else "")] = value
    return patterns
