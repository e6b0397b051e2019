"""RMSNorms as one function (kernels/rms_norm.py).

They are recognised by their parts: a weight, an epsilon, and nothing else. Whether the weight is
the factor, or one less than it (Gemma), shows when the two are compared.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lorafit.kernels.rms_norm import rms_norm


class FastNorm:
    """Mixed into the class of a norm."""

    lorafit_factor: Callable[[Tensor], Tensor]

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weight: Tensor = self.weight  # type: ignore[attr-defined]
        if args or kwargs or hidden_states.dtype != weight.dtype or weight.requires_grad:
            plain: Any = super()
            return plain.forward(hidden_states, *args, **kwargs)
        factor = type(self).lorafit_factor(weight)
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
    before = type(module)
    module.__class__ = _fast_class(before, adds_one)

    def undo() -> None:
        module.__class__ = before

    return undo


_CLASSES: dict[tuple[type, bool], type] = {}


def _fast_class(kind: type, adds_one: bool) -> type:
    if (kind, adds_one) not in _CLASSES:
        factor = _one_more if adds_one else _itself
        _CLASSES[kind, adds_one] = type(kind.__name__, (FastNorm, kind),
                                        {"lorafit_factor": staticmethod(factor)})
    return _CLASSES[kind, adds_one]


def _itself(weight: Tensor) -> Tensor:
    return weight


def _one_more(weight: Tensor) -> Tensor:
    return torch.add(weight, 1.0)
