"""What recipe and model do not have in common: refused, or remarked on where it is allowed."""

import difflib
import math
import re

import torch
from torch import nn

from lorafit.errors import Problem, UserError
from lorafit.model.choice import (
    ends_in,
    experts_per_token,
    is_excluded,
    is_named,
    is_wanted,
    matches,
)
from lorafit.model.inventory import is_norm, module_words, weights_of
from lorafit.model.named_modules import has_weights
from lorafit.model.weights import Stack, Weight, layer_kind
from lorafit.recipe.adapter import TARGET_WORDS, Adapter
from lorafit.recipe.methods import BITSANDBYTES


def refuse_unmatched(model: nn.Module, section: Adapter) -> None:
    """A word that matches nothing would adapt less than was meant, silently."""
    weights = weights_of(model)
    if section.row.where == "linear":
        names = {weight.label for weight in weights
                 if section.method == "lora" or not weight.is_parameter}
    else:
        eligible = is_norm if section.row.where == "norms" else has_weights
        names = {name for name, module in model.named_modules() if eligible(module)}
    problems = []
    wanted = section.target_modules
    if isinstance(wanted, str) and wanted not in TARGET_WORDS:
        if not any(re.fullmatch(wanted, name) for name in names):
            example = min((name for name in names if layer_kind(name) != name), default="")
            problems.append(Problem(
                f"the expression {wanted!r} matches no layer", "adapter.target_modules",
                f"it must match full names such as {example}",
            ))
    elif isinstance(wanted, list):
        problems += [problem for word in wanted
                     if (problem := _useless(word, names, model, section, weights))]
    everything = {name for name, _ in model.named_modules() if name}
    known = everything | {weight.label for weight in weights}
    problems += [_unmatched("adapter.modules_to_save", word, everything)
                 for word in section.modules_to_save if not ends_in(everything, [word])]
    exclude = section.exclude_modules
    if isinstance(exclude, list):
        problems += [_unmatched("adapter.exclude_modules", word, known) for word in exclude
                     if not ends_in(known, [word])]
    elif exclude is not None and not any(re.fullmatch(exclude, name) for name in known):
        problems.append(Problem(f"the expression {exclude!r} matches no layer",
                                "adapter.exclude_modules", "it must match full names"))
    if problems:
        raise UserError(problems=problems)


def refuse_what_only_mixtures_have(section: Adapter, weights: list[Weight]) -> None:
    """Keys on experts and routers, where there are none."""
    experts = [weight for weight in weights if weight.part == "experts"]
    problems = []
    for key, asks, there in (
        ("experts", section.experts in ("each", "shared"), experts),
        ("rank_per_expert", section.rank_per_expert, experts),
        ("router", section.router, [w for w in weights if w.part == "router"]),
    ):
        if asks and not there:
            what = "a router that can be adapted" if key == "router" else "experts"
            problems.append(Problem(f"the model has no {what.removeprefix('a ')}",
                                    f"adapter.{key}", "leave it out"))
    if section.experts == "shared" and any(not weight.is_fused for weight in experts):
        problems.append(Problem(
            "this model's experts are linear layers of their own, which cannot share an adapter",
            "adapter.experts", "use each, with rank_per_expert: true for a smaller one"))
    if problems:
        raise UserError(problems=problems)


def refuse_patterns_of_nothing(section: Adapter, chosen: list[Weight]) -> None:
    """A pattern that matches no adapted layer would change nothing, silently."""
    problems = []
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(section, key):
            if not any(matches(pattern, weight) for weight in chosen):
                near = _unmatched(f"adapter.{key}", pattern, {w.label for w in chosen})
                problems.append(Problem(f"{pattern!r} matches no adapted layer", near.where,
                                        near.remedy))
    if problems:
        raise UserError(problems=problems)


def refuse_on_parameters(model: nn.Module, section: Adapter, reached: list[Weight],
                          weights: list[Weight], stored: str) -> None:
    """What peft has for linear layers only, and not for weights that it reaches as parameters."""
    what = ("fused expert weights" if all(weight.is_fused for weight in reached) else
            f"{layer_kind(reached[-1].label)}, which peft reaches as a parameter in this "
            "architecture")
    plain = [weight.name for weight in weights if weight.part == "attention"]
    remedy = f"or adapt attention only: target_modules: [{', '.join(module_words(model, plain))}]"
    problems = []
    if section.dropout:
        problems.append(Problem(f"dropout cannot be applied to {what}", "adapter.dropout",
                                f"set it to 0, {remedy}"))
    if section.dora:
        problems.append(Problem(f"DoRA cannot be applied to {what}", "adapter.dora",
                                f"set it to false, {remedy}"))
    if section.init not in ("default", "gaussian"):
        problems.append(Problem(f"init {section.init} cannot start {what}", "adapter.init",
                                f"use init: default, {remedy}"))
    packed = [weight for weight in reached if not weight.is_fused and weight.part != "router" and (
        stored != "none" or _is_packed(model.get_submodule(weight.name)))]
    if packed:
        problems.append(Problem(
            f"{layer_kind(packed[0].label)} cannot be adapted on a quantised base: peft reaches "
            "it as a parameter in this architecture, and quantised it is packed",
            "model.quantization", f"use none, {remedy}"))
    if problems:
        raise UserError(problems=problems)


def remarks_on(model: nn.Module, stack: Stack, section: Adapter, weights: list[Weight],
               chosen: list[Weight], stored: str) -> list[str]:
    remarks = [*_caught_beside(section, weights, chosen), *_saves_more(model, section)]
    fused = [weight for weight in weights if weight.is_fused]
    if fused and section.method != "lora":
        remarks.append(f"the experts' fused weights ({_kinds(fused)}) are left alone: "
                       f"{section.method} adapts linear layers only")
    if fused and stored in BITSANDBYTES:
        held = sum(math.prod(weight.shape) for weight in fused)
        total = sum(parameter.numel() for parameter in model.parameters())
        remarks.append(f"{stored} stores linear layers only: the experts' fused weights, "
                       f"{100 * held / total:.0f} % of the parameters, stay in 16 bits")
    if section.rank_per_expert:
        rank, active = section.rank or 1, experts_per_token(stack)
        if rank % active:
            remarks.append(f"rank {rank} over {active} active experts is {rank / active:.3g}: each "
                           f"expert has rank {math.ceil(rank / active)}, at the same scale")
    return remarks


def _useless(word: str, names: set[str], model: nn.Module, section: Adapter,
             weights: list[Weight]) -> Problem | None:
    """Why a word of target_modules chooses nothing; None when it does."""
    meant = [weight for weight in weights if ends_in([weight.label], [word])]
    if section.row.where == "linear" and meant:
        parts = {weight.part for weight in meant}
        if parts == {"router"} and not section.router:
            return Problem(f"{word} is a mixture's router, which is left alone",
                           "adapter.target_modules", "set adapter.router: true, or leave it out")
        if parts == {"experts"} and section.experts == "none":
            return Problem(f"{word} names experts, which experts: none leaves alone",
                           "adapter.target_modules", "leave one of the two out")
        if section.method != "lora" and all(weight.is_parameter for weight in meant):
            return Problem(f"{word} is one tensor for all experts, which {section.method} cannot "
                           "adapt", "adapter.target_modules", "use method: lora, or leave it out")
    if ends_in(names, [word]):
        return None
    if fused := next((weight for weight in weights if weight.is_fused
                      and word in _FUSED.get(weight.label.rpartition(".")[2], ())), None):
        inside = fused.label.rpartition(".")[2]
        return Problem(f"{word} is part of {inside} here, one tensor for all experts",
                       "adapter.target_modules", f"name {inside}")
    return _no_match(word, names, model, section)


# What the experts' tensors were called while each expert had its own.
_FUSED = {"gate_up_proj": ("gate_proj", "up_proj", "w1", "w3"), "down_proj": ("w2",)}


def _no_match(wanted: str, adaptable: set[str], model: nn.Module, section: Adapter) -> Problem:
    kind = next((type(module).__name__ for name, module in model.named_modules()
                 if ends_in([name], [wanted])), None)
    if kind is not None:
        name = "LoRA" if section.method == "lora" else section.method
        return Problem(f"{wanted} is a {kind}, which {name} cannot adapt",
                       "adapter.target_modules", "train it in full with modules_to_save instead")
    return _unmatched("adapter.target_modules", wanted, adaptable)


def _unmatched(key: str, wanted: str, names: set[str]) -> Problem:
    known = sorted({name.rpartition(".")[2] for name in names
                    if not name.rpartition(".")[2].isdigit()})
    close = difflib.get_close_matches(wanted.rpartition(".")[2], known, 1, 0.6)
    remedy = f"did you mean {close[0]}?" if close else f"layers here: {', '.join(known)}"
    return Problem(f"{wanted} matches no layer of the model", key, remedy)


def _is_packed(module: nn.Module) -> bool:
    """Whether a linear layer has no weight that could be added to."""
    weight = getattr(module, "weight", None)
    return not isinstance(weight, torch.Tensor) or not weight.is_floating_point()


# peft's words for the choice.


def _caught_beside(section: Adapter, weights: list[Weight], chosen: list[Weight]) -> list[str]:
    """What an expression means beside linear layers of the decoder, and what it leaves out."""
    remarks = []
    wanted, exclude = section.target_modules, section.exclude_modules
    if isinstance(wanted, str) and wanted not in TARGET_WORDS:
        beside = [weight for weight in chosen if weight.part in ("head", "embeddings")]
        if beside:
            remarks.append(f"the expression {wanted!r} also means {_kinds(beside)}; if that is not "
                           f"wanted, exclude_modules: [{_kinds(beside)}]")
        routers = [weight for weight in weights if weight.part == "router"
                   and is_named(weight.label, wanted)]
        if routers and not section.router:
            remarks.append(f"the expression {wanted!r} also means {_kinds(routers)}, which "
                           "router: false leaves alone")
    if exclude is not None and all(
            is_wanted(weight, section) is False or not is_excluded(weight.label, section)
            for weight in weights):
        remarks.append(f"exclude_modules: {exclude} leaves out nothing that target_modules means")
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(section, key):
            if len(chosen) > 1 and all(matches(pattern, weight) for weight in chosen):
                remarks.append(f"{key}: {pattern!r} matches every adapted layer, so "
                               f"{key.removesuffix('_pattern')} is used by none")
    return remarks


def _saves_more(model: nn.Module, section: Adapter) -> list[str]:
    """Modules that peft would train in full though the recipe does not name them.

    peft compares the ends of names, not of their words: `norm` is also the end of
    `input_layernorm`.
    """
    remarks = []
    for word in section.modules_to_save:
        more = [name for name, _ in model.named_modules()
                if name.endswith(word) and not ends_in([name], [word])]
        if more:
            kinds = ", ".join(dict.fromkeys(layer_kind(name) for name in more))
            exact = next(name for name, _ in model.named_modules() if ends_in([name], [word]))
            remarks.append(f"modules_to_save: {word} also means {kinds}; if that is not wanted, "
                           f"name {exact}")
    return remarks


def _kinds(weights: list[Weight]) -> str:
    return ", ".join(dict.fromkeys(layer_kind(weight.label) for weight in weights))
