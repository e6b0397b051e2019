"""What a step should cost, by counting multiplications.

FLOPs a token of a linear layer with I inputs and O outputs: 2·I·O forward, 2·I·O backward to its
inputs, 2·I·O for the gradient of its weight. A LoRA adapter of rank R adds 2·R·(I+O) three times
over. So for a square layer of width N LoRA takes 2/3 + 2R/N of what full fine-tuning takes.
Norms, activations and the optimizer are left out, and so is that the lowest layer needs no gradient
of its inputs.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from lorafit.model.adapters.lora import base_name, lora_layers
from lorafit.model.choice import chosen_layers
from lorafit.model.inventory import stack_of, weights_of
from lorafit.model.weights import LINEAR
from lorafit.recipe.adapter import Adapter


@dataclass(frozen=True)
class Count:
    """FLOPs a token of all linear layers: with the adapter, and when they are trained in full.

    head: of the output head, for a supervised token: forward, and backward to the hidden states.
    """

    adapted: float
    full: float
    head: float


def count(base: nn.Module, adapted: Any, adapter: Adapter) -> Count | str:
    """For LoRA; otherwise why nothing is counted.

    base: without an adapter. adapted: the same with `adapter` on it.
    """
    if adapter.method != "lora":
        return f"the arithmetic is LoRA's, not that of {adapter.method}"
    weights = weights_of(base)
    if any(weight.part in ("experts", "router") for weight in weights):
        return "a token goes through some of a mixture's experts only"
    ranks = {base_name(name): layer.lora_A["default"].weight.shape[0]
             for name, layer in lora_layers(adapted) if "default" in layer.lora_A}
    lowest = min(chosen_layers(stack_of(base), adapter) or [0])
    head = adapted_flops = full_flops = 0.0
    for weight in weights:
        out, into = weight.shape
        if weight.part == "head":
            head += 4 * out * into
        elif weight.part in LINEAR:
            number = _layer_number(weight.name)
            passes = 4 if number is None or number >= lowest else 2
            adapted_flops += passes * out * into + 6 * ranks.get(weight.name, 0) * (out + into)
            full_flops += 6 * out * into
    return Count(adapted_flops, full_flops, head)


def _layer_number(name: str) -> int | None:
    """3 of `model.layers.3.mlp.up_proj`."""
    return next((int(word) for word in name.split(".") if word.isdecimal()), None)
