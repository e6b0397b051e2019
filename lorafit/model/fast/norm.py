"""RMSNorms as one function (kernels/rms_norm.py).

They are recognised by their parts: a weight, an epsilon, and nothing else. Whether the weight is
the factor, or one less than it (Gemma), shows when the two are compared.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lorafit.kernels.rms_norm import rms_norm
from lorafit.model.fast.form import take_form


class FastNorm:
    """Mixed into the class of a norm. lorafit_adds_one: whether the factor is 1 + weight."""

    lorafit_adds_one: bool = False

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weight: Tensor = self.weight  # type: ignore[attr-defined]
        if args or kwargs or hidden_states.dtype != weight.dtype or weight.requires_grad:
            plain: Any = super()
            return plain.forward(hidden_states, *args, **kwargs)
        factor = torch.add(weight, 1.0) if self.lorafit_adds_one else weight
        return rms_norm(hidden_states, factor, epsilon_of(self) or 0.0)


def norms(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of every norm that may be one function."""
    for name, module in model.named_modules():
        if "RMSNorm" in type(module).__name__ and epsilon_of(module) is not None \
                and [key for key, _ in module.named_parameters()] == ["weight"] \
                and module.weight.ndim == 1 and not module.weight.requires_grad \
                and not module._forward_hooks and not module._forward_pre_hooks:
            yield name, module


def epsilon_of(module: Any) -> float | None:
    for name in ("variance_epsilon", "eps"):
        value = getattr(module, name, None)
        if isinstance(value, float):
            return value
    return None


def make_fast(module: Any, *, adds_one: bool) -> Callable[[], None]:
    """Give a norm its fast forward pass, and return what takes it back."""
    return take_form(module, FastNorm, lorafit_adds_one=adds_one)
