"""Gated MLPs as one function (kernels/gated_mlp.py), whatever their class is called.

They are recognised by their parts. Whether such a module really computes down(act(gate(x)) · up(x))
is not read but measured: `speed_up` compares the model before and after.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from lorafit.kernels.gated_mlp import ACTIVATIONS, Activation, gated_mlp
from lorafit.model.fast.form import take_form
from lorafit.model.fast.linear import (
    computes_in,
    dropped_inputs,
    is_ordinary,
    projection,
    why_not_fast,
    why_not_frozen_linear,
)

_PARTS = ("gate_proj", "up_proj", "down_proj")


class FastGatedMlp:
    """Mixed into the class of an MLP.

    lorafit_keeps_inner: whether gate(x) and up(x) are kept for the backward pass. lorafit_places:
    the tokens (N,) of the flattened input whose output is wanted; None for all.
    """

    lorafit_activation: Activation
    lorafit_keeps_inner: bool = True
    lorafit_places: Tensor | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        gate, up, down = parts = [getattr(self, name) for name in _PARTS]
        if args or kwargs or not all(_is_ordinary(part, x) for part in parts):
            plain: Any = super()
            return plain.forward(x, *args, **kwargs)
        places, dtype = self.lorafit_places, x.dtype
        wanted = x if places is None else x.flatten(0, -2).index_select(0, places)
        kept = dropped_inputs(gate if _has_adapter(gate) else up, wanted)  # one mask for both
        y = gated_mlp(wanted, projection(gate, dtype), projection(up, dtype),
                      projection(down, dtype), self.lorafit_activation, kept,
                      dropped_inputs(down, wanted), keeps_inner=self.lorafit_keeps_inner)
        if places is None:
            return y
        everywhere = y.new_zeros(x.numel() // x.shape[-1], y.shape[-1]).index_copy(0, places, y)
        return everywhere.view(*x.shape[:-1], -1)


def gated_mlps(model: nn.Module) -> Iterator[tuple[str, Any, Activation]]:
    """Name, module and activation of every MLP that can be one function."""
    for name, module in model.named_modules():
        parts = [getattr(module, part, None) for part in _PARTS]
        if any(part is None or _why_not(part) is not None for part in parts):
            continue
        others = {id(child) for child in module.children()} - {id(part) for part in parts}
        has_weights = any(id(child) in others and any(True for _ in child.parameters())
                          for child in module.children())
        activation = activation_of(module)
        if activation is not None and not has_weights:
            yield name, module, activation


def make_fast(mlp: Any, activation: Activation) -> Callable[[], None]:
    """Give an MLP its fast forward pass, and return what takes it back."""
    return take_form(mlp, FastGatedMlp, lorafit_activation=activation)


def activation_of(module: nn.Module) -> Activation | None:
    """The one that the module's configuration names, if it is known here."""
    config = getattr(module, "config", None)
    names = [getattr(config, key, None) for key in ("hidden_activation", "hidden_act")]
    return next((ACTIVATIONS[name] for name in names if name in ACTIVATIONS), None)


def _has_adapter(part: Any) -> bool:
    return hasattr(part, "lora_A")


def _why_not(part: Any) -> str | None:
    if _has_adapter(part):
        return why_not_fast(part)
    if part._forward_hooks or part._forward_pre_hooks:
        return "something listens to it (a hook)"
    return why_not_frozen_linear(part)


def _is_ordinary(part: Any, x: Tensor) -> bool:
    return is_ordinary(part, x) if _has_adapter(part) else computes_in(part, x)
