"""What is trained, counted exactly, and the settings that each kind of layer really got."""

from dataclasses import dataclass
from typing import Any

import torch

from lorafit.model.adapters.float32 import plain_name
from lorafit.model.adapters.lora import base_name, lora_layers
from lorafit.model.stored import stands_for
from lorafit.model.weights import layer_kind


@dataclass(frozen=True)
class AdaptedKind:
    """What one kind of layer really got. `parameters` counts all its layers together.

    rank, alpha and scale are None for methods that do not have them.
    """

    kind: str
    layers: int
    shape: str
    rank: int | None
    alpha: float | None
    scale: float | None
    parameters: int


@dataclass(frozen=True)
class AdapterFacts:
    """Exact counts of a model with its adapter, and the realised settings of each kind."""

    trainable_parameters: int
    total_parameters: int
    kinds: list[AdaptedKind]
    fully_trained: dict[str, int]


def describe(adapted: Any) -> AdapterFacts:
    """Exact counts and, for each kind of layer, what it got."""
    kinds, counted = _lora_kinds(adapted)
    others, fully = _other_kinds(adapted, counted)
    return AdapterFacts(
        trainable_parameters=sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        total_parameters=_total_parameters(adapted), kinds=[*kinds, *others], fully_trained=fully,
    )


def _lora_kinds(adapted: Any) -> tuple[list[AdaptedKind], set[int]]:
    """LoRA's layers by kind, and which parameters are theirs."""
    if not hasattr(adapted, "peft_config"):
        return [], set()
    kinds: dict[tuple[str, str, int, float, float], list[int]] = {}
    counted = set()
    for name, module in lora_layers(adapted):
        own = [p for key, p in module.named_parameters(recurse=True)
               if ".default" in f".{key}" and "base_layer" not in key]
        trained = [p for p in own if p.requires_grad]
        if not trained or not isinstance(module.r["default"], int):
            continue
        counted |= {id(p) for p in own}
        parameter = getattr(module, "parameter_name", None)
        kind = layer_kind(base_name(name)).replace(".base_layer", "")
        kind = f"{kind}.{parameter}" if parameter and parameter != "weight" else kind
        experts = getattr(module, "num_experts", 1)
        shape = _shape(own) if experts == 1 else f"{experts} × {_shape(own)}"
        scale = float(module.scaling["default"])
        if hasattr(module, "ranknum"):  # AdaLoRA divides by the rank as it computes
            scale /= int(module.r["default"])
        key = (kind, shape, int(module.r["default"]), float(module.lora_alpha["default"]), scale)
        kinds.setdefault(key, []).append(sum(p.numel() for p in trained))
    return [AdaptedKind(key[0], len(counts), *key[1:], sum(counts))
            for key, counts in kinds.items()], counted


def _other_kinds(adapted: Any, counted: set[int]) -> tuple[list[AdaptedKind], dict[str, int]]:
    """Everything else that is trained: by kind of layer, and the base's own modules by name."""
    is_peft = hasattr(adapted, "peft_config")
    kinds: dict[tuple[str, str], list[int]] = {}
    fully = {}
    for name, parameter in adapted.named_parameters():
        if not parameter.requires_grad or id(parameter) in counted:
            continue
        plain = plain_name(name)
        plain = base_name(plain) if is_peft else plain.removeprefix("model.")
        if is_peft and _is_base_weight(name):
            fully[plain.replace(".modules_to_save.default", "")] = parameter.numel()
            continue
        plain = plain.removeprefix("base_model.").replace(".default", "")
        plain = plain.removesuffix(".weight").removesuffix(".change")
        kind = layer_kind(plain) if ".layers." in f".{plain}" else plain
        shape = " × ".join(map(str, parameter.shape))
        kinds.setdefault((kind, shape), []).append(parameter.numel())
    return [AdaptedKind(kind, len(counts), shape, None, None, None, sum(counts))
            for (kind, shape), counts in kinds.items()], fully


def _is_base_weight(name: str) -> bool:
    """Whether a trained parameter is one of the base's own: a module trained in full, or a bias."""
    if ".modules_to_save." in name:
        return True
    return "default" not in name.split(".") and "adaption_" not in name \
        and not name.startswith("prompt_encoder")


def _shape(parameters: list[torch.nn.Parameter]) -> str:
    """out × in of the adapted weight, from the shapes of A (r, in) and B (out, r)."""
    matrices = [p for p in parameters if p.ndim == 2]
    if len(matrices) < 2:
        return ""
    return f"{matrices[1].shape[0]} × {matrices[0].shape[1]}"


def _total_parameters(adapted: Any) -> int:
    """Every weight once, packed ones by how many they stand for."""
    total = sum(stands_for(module) or 0 for module in adapted.modules())
    for parameter in adapted.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None and getattr(state, "shape", None) is not None:
            total += torch.Size(state.shape).numel()
        else:
            total += parameter.numel()
    return total
