"""peft's LoRA layers with a forward pass of one function (kernels/lora_linear.py).

A layer keeps its parameters, their names and all of peft's methods; only its class becomes a
subclass whose `forward` is ours. Whatever is out of the ordinary at a call (adapters switched off,
merged, several of them, another dtype) goes to peft's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lorafit.kernels.lora_linear import Projection, lora_linear
from lorafit.kernels.thin import Kept, draw_kept
from lorafit.model.fast.form import take_form

ADAPTER = "default"  # the only adapter that lorafit trains


@dataclass
class Shared:
    """Projections of one input, all computed when the first of them is asked.

    The others find their output here as long as they come with the same tensor.
    """

    layers: list[nn.Module]
    _input: Tensor | None = None
    _outputs: dict[int, Tensor] = field(default_factory=dict)

    def output(self, layer: Any, x: Tensor) -> Tensor:
        if layer is self.layers[0]:
            kept = dropped_inputs(layer, x)
            outputs = lora_linear(x, [projection(each, x.dtype) for each in self.layers], kept)
            self._input = x
            self._outputs = {id(each): y for each, y in zip(self.layers, outputs, strict=True)}
        if self._input is not x or id(layer) not in self._outputs:
            (y,) = lora_linear(x, [projection(layer, x.dtype)], dropped_inputs(layer, x))
            return y
        y = self._outputs.pop(id(layer))
        if not self._outputs:
            self._input = None
        return y


class FastLinear:
    """Mixed into a class of peft's."""

    lorafit_shared: Shared | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or not is_ordinary(self, x):
            plain: Any = super()
            return plain.forward(x, *args, **kwargs)
        if self.lorafit_shared is not None:
            return self.lorafit_shared.output(self, x)
        (y,) = lora_linear(x, [projection(self, x.dtype)], dropped_inputs(self, x))
        return y


def why_not_fast(layer: Any) -> str | None:
    """Why a LoRA layer stays peft's own; None when it can be fast."""
    from peft.tuners.lora import layer as peft_layers

    if isinstance(layer, FastLinear):
        return None
    name = type(layer).__name__
    if name == "Linear8bitLt":
        return "int8 rounds the layer's inputs too, so its product stays bitsandbytes'"
    if name == "ParamWrapper":  # of a linear layer that peft reaches as a parameter
        if layer.parameter_name != "weight" or not isinstance(layer.base_layer, nn.Linear):
            return "it is a bare weight, to which A and B are added"
    elif type(layer) is not peft_layers.Linear and name != "Linear4bit":
        return f"{name} is no plain linear layer"
    variant = layer.lora_variant.get(ADAPTER)
    if variant is not None:
        return f"{type(variant).__name__.removesuffix('LinearVariant')} changes how it computes"
    if layer.lora_bias.get(ADAPTER):
        return "its adapter has a bias"
    if list(layer.lora_A.keys()) != [ADAPTER]:
        return "it has several adapters"
    if (reason := why_not_frozen_linear(layer.base_layer)) is not None:
        return reason
    parts = (layer.base_layer, layer.lora_A[ADAPTER], layer.lora_B[ADAPTER])
    if any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks
           for part in parts):
        return "something listens to its parts (a hook)"
    if any(parametrize.is_parametrized(part, "weight") for part in parts):
        return "its weights are computed from others"
    return None


def why_not_frozen_linear(base: Any) -> str | None:
    """Why a layer's product with its frozen weight cannot be computed here."""
    if _is_4bit(base):
        return None
    is_plain = type(base) is nn.Linear or type(base).__name__ == "ParametrizedLinear"
    if not is_plain and not _is_transposed(base):
        return f"the base's layer is {type(base).__name__}"
    if not base.weight.is_floating_point() or base.weight.element_size() == 1:
        return f"the base's weight is stored as {str(base.weight.dtype).removeprefix('torch.')}"
    if base.weight.requires_grad:
        return "the base's weight is trained too"
    return None


def is_ordinary(layer: Any, x: Tensor) -> bool:
    """Whether this call is a training or evaluation step with the one adapter on."""
    return (not layer.disable_adapters and not layer.merged_adapters
            and layer.active_adapters == [ADAPTER] and computes_in(layer.base_layer, x))


def computes_in(base: Any, x: Tensor) -> bool:
    """Whether the base's product on x is in the dtype of x."""
    if _is_4bit(base):
        wanted = base.compute_dtype or x.dtype
        return bool(wanted == x.dtype and quant_state(base) is not None)
    return bool(base.weight.dtype == x.dtype)


def projection(layer: Any, dtype: torch.dtype) -> Projection:
    """A peft layer, or a linear layer without an adapter, as the kernels take it."""
    base = getattr(layer, "base_layer", layer)
    read = weight_of(base, dtype)
    if base is layer:
        return Projection(read, None, None, 1.0, base.bias)
    return Projection(read, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight,
                      float(layer.scaling[ADAPTER]), base.bias)


def weight_of(base: Any, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Reads the frozen weight, dequantised where it is stored in 4 bits."""
    weight = base.weight
    if _is_transposed(base):
        return weight.t
    if not _is_4bit(base):
        return lambda: weight

    def dequantised() -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, quant_state(base)).to(dtype)

    return dequantised


def quant_state(base: Any) -> Any:
    """Scales of a 4-bit weight: with the weight, or with its layer when the weight was cut up."""
    return getattr(base.weight, "quant_state", None) or base.quant_state


def dropped_inputs(layer: Any, x: Tensor) -> Kept | None:
    """The mask over the layer's inputs for the tokens of x (…, any width). None without an adapter,
    without dropout, or when evaluating."""
    dropout = layer.lora_dropout[ADAPTER] if hasattr(layer, "lora_dropout") else None
    if not isinstance(dropout, nn.Dropout) or not dropout.training or dropout.p == 0:
        return None
    width = layer.lora_A[ADAPTER].weight.shape[1]
    return draw_kept(x.numel() // x.shape[-1], width, dropout.p, x.device)


def make_fast(layers: Sequence[Any]) -> Callable[[], None]:
    """Give layers their fast forward pass, together if there are several, which then share an
    input and are called in this order. Returns what takes it back."""
    shared = Shared(list(layers)) if len(layers) > 1 else None
    undo_each = [take_form(layer, FastLinear, lorafit_shared=shared) for layer in layers]

    def undo() -> None:
        for undo_one in undo_each:
            undo_one()

    return undo


def _is_transposed(base: Any) -> bool:
    """GPT-2's layers hold their weight as (inputs, outputs)."""
    return type(base).__name__ == "Conv1D" and type(base).__module__.startswith("transformers")


def _is_4bit(base: Any) -> bool:
    return type(base).__name__ == "Linear4bit" and type(base).__module__.startswith("bitsandbytes")
