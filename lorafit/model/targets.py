"""Which layers of an architecture a recipe adapts. Works on a model without weights."""

import difflib
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lorafit.errors import Problem, UserError
from lorafit.recipe.schema import Adapter

_LAYER_NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Targets:
    """What peft is told to adapt.

    modules: a sorted list of name endings, or the recipe's regular expression.
    parameters: names of fused expert weights (mixture models keep them as one tensor).
    exclude: module names that the endings would catch too.
    layers: decoder layers, None for all.
    """

    modules: list[str] | str
    parameters: list[str]
    exclude: list[str] | str | None
    layers: list[int] | None


def resolve_targets(model: nn.Module, section: Adapter) -> Targets:
    """Match the recipe's words against the model. UserError when something matches nothing."""
    layers = _layers(model, section)
    names = {name for name, module in model.named_modules() if _can_adapt(module)}
    problems = []
    if section.target_modules == "all-linear":
        pass  # matches by construction
    elif isinstance(section.target_modules, str):
        matched = {name for name in names if re.fullmatch(section.target_modules, name)}
        if not matched:
            example = min((name for name in names if _LAYER_NUMBER.search(name)), default="")
            problems.append(Problem(
                f"the expression {section.target_modules!r} matches no layer",
                "adapter.target_modules",
                f"it must match full names such as {example}",
            ))
    else:
        for wanted in section.target_modules:
            if not _ending(names, wanted):
                problems.append(_no_match(wanted, names, model))
    for key in ("modules_to_save", "exclude_modules"):
        value = getattr(section, key)
        everything = {name for name, _ in model.named_modules() if name}
        for wanted in value if isinstance(value, list) else []:
            if not _ending(everything, wanted):
                problems.append(_unmatched(f"adapter.{key}", wanted, everything))
    if problems:
        raise UserError(problems=problems)
    if section.target_modules == "all-linear":
        return _all_linear(model, section, layers)
    modules = section.target_modules
    return Targets(
        modules if isinstance(modules, str) else sorted(set(modules)), [],
        section.exclude_modules, layers,
    )


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of decoder layers: the longest ModuleList of the model."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise UserError("no list of decoder layers was found in the model", "adapter.layers",
                        "leave adapter.layers out")
    return max(lists, key=len)


def _all_linear(model: Any, section: Adapter, layers: list[int] | None) -> Targets:
    """Every linear layer but the output head and the routers, and fused expert weights."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = {name for name, module in model.named_modules() if _is_linear(module)}
    left_out = {name for name in linear
                if model.get_submodule(name) is head or _is_router(model, name)}
    wanted = sorted({name.rpartition(".")[2] for name in linear - left_out})
    parameters = sorted({
        f"{name.rpartition('.')[2]}.{parameter_name}"
        for name, module in model.named_modules()
        for parameter_name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and "experts" in name.rpartition(".")[2]
    })
    caught = sorted(name for name in left_out if name.rpartition(".")[2] in wanted)
    if parameters:
        _refuse_on_experts(section)
    exclude: list[str] | str | None = section.exclude_modules
    if caught:
        if isinstance(exclude, str):
            exclude = f"({exclude})|" + "|".join(map(re.escape, caught))
        else:
            exclude = [*(exclude or []), *caught]
    if not wanted:
        raise UserError("the model has no linear layer", "adapter.target_modules",
                        "name the layers to adapt")
    return Targets(wanted, parameters, exclude, layers)


def _refuse_on_experts(section: Adapter) -> None:
    problems = []
    remedy = "or adapt attention only: target_modules: [q_proj, k_proj, v_proj, o_proj]"
    if section.dropout > 0:
        problems.append(Problem("dropout cannot be applied to fused expert weights",
                                "adapter.dropout", f"set it to 0, {remedy}"))
    if section.dora:
        problems.append(Problem("DoRA cannot be applied to fused expert weights",
                                "adapter.dora", f"set it to false, {remedy}"))
    if section.layers is not None:
        problems.append(Problem("a choice of layers cannot be applied to fused expert weights",
                                "adapter.layers", f"leave it out, {remedy}"))
    if section.alters_base:
        problems.append(Problem(f"init {section.init} cannot start fused expert weights",
                                "adapter.init", f"use init: default, {remedy}"))
    if problems:
        raise UserError(problems=problems)


def _is_linear(module: nn.Module) -> bool:
    # bitsandbytes' layers are subclasses of nn.Linear; Conv1D is GPT-2's transposed one.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _can_adapt(module: nn.Module) -> bool:
    return _is_linear(module) or isinstance(module, nn.Embedding)


def _is_router(model: nn.Module, name: str) -> bool:
    """A linear layer beside `experts` that scores them: named gate or router."""
    parent = model.get_submodule(name.rpartition(".")[0])
    return name.rpartition(".")[2] in ("gate", "router") and hasattr(parent, "experts")


def _layers(model: nn.Module, section: Adapter) -> list[int] | None:
    if section.layers is None:
        return None
    count = len(decoder_layers(model))
    if isinstance(section.layers, str):
        top = int(section.layers.removeprefix("last:"))
        if top > count:
            raise UserError(f"the model has {count} layers, fewer than {top}", "adapter.layers",
                            f"last:{count} is all of them")
        return list(range(count - top, count))
    outside = [layer for layer in section.layers if layer >= count]
    if outside:
        raise UserError(f"there is no layer {outside[0]}; the model has 0 to {count - 1}",
                        "adapter.layers", "name existing layers")
    return sorted(set(section.layers))


def _ending(names: set[str], wanted: str) -> bool:
    return any(name == wanted or name.endswith(f".{wanted}") for name in names)


def _no_match(wanted: str, adaptable: set[str], model: nn.Module) -> Problem:
    everything = {name for name, _ in model.named_modules()}
    if _ending(everything, wanted):
        kind = next(type(module).__name__ for name, module in model.named_modules()
                    if _ending({name}, wanted))
        return Problem(f"{wanted} is a {kind}, which LoRA cannot adapt",
                       "adapter.target_modules", "train it in full with modules_to_save instead")
    return _unmatched("adapter.target_modules", wanted, adaptable)


def _unmatched(key: str, wanted: str, names: set[str]) -> Problem:
    endings = sorted({name.rpartition(".")[2] for name in names
                      if not name.rpartition(".")[2].isdigit()})
    close = difflib.get_close_matches(wanted.rpartition(".")[2], endings, 1, 0.6)
    remedy = f"did you mean {close[0]}?" if close else f"layers here: {', '.join(endings)}"
    return Problem(f"{wanted} matches no layer of the model", key, remedy)


def layer_kind(name: str) -> str:
    """A layer's name without its number: `model.layers.3.self_attn.q_proj` → `self_attn.q_proj`."""
    return _LAYER_NUMBER.split(name)[-1] if _LAYER_NUMBER.search(name) else name


def unwrap(model: Any) -> torch.nn.Module:
    """The transformers model inside a peft model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
