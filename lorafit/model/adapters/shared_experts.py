"""One adapter that all experts of a layer share (`experts: shared`).

peft keeps the adapters of fused experts side by side: A is (experts · r, in), the rows of an expert
together, and B is (out, r · experts), the columns of an expert `experts` apart. Shared, one part of
either is trained and stands for all: ΔW is the same for every expert. What is saved is what peft
knows, each expert's part spelled out, so that any tool loads it and merging needs nothing of its
own.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lorafit.model.adapters.lora import base_name


class _ForEach(nn.Module):
    """One expert's part of A or B, repeated for each of them."""

    def __init__(self, experts: int, *, is_a: bool) -> None:
        super().__init__()
        self.experts = experts
        self.is_a = is_a

    def forward(self, part: Tensor) -> Tensor:
        if self.is_a:
            return part.repeat(self.experts, 1)
        return part.repeat_interleave(self.experts, dim=1)

    def right_inverse(self, whole: Tensor) -> Tensor:
        """The first expert's part."""
        part = whole[: len(whole) // self.experts] if self.is_a else whole[:, :: self.experts]
        return part.clone(memory_format=torch.contiguous_format)


def share_experts(adapted: Any, experts: set[str]) -> None:
    """Train one adapter in place of those of all experts, in each of the fused weights `experts`.

    They are named as in the base.
    """
    from peft.tuners.lora import ParamWrapper

    for name, module in list(adapted.named_modules()):
        plain = base_name(name).replace(".base_layer", "")
        if isinstance(module, ParamWrapper) and f"{plain}.{module.parameter_name}" in experts:
            for factors, is_a in ((module.lora_A, True), (module.lora_B, False)):
                parametrize.register_parametrization(
                    factors["default"], "weight", _ForEach(module.num_experts, is_a=is_a))


def expert_factors(wrapper: Any) -> tuple[Tensor, Tensor]:
    """A (E, r, in) and B (E, r, out) of fused experts as views of what is trained; (1, r, in) and
    (1, r, out) where all experts share them."""
    a, b = wrapper.lora_A["default"], wrapper.lora_B["default"]
    shared = _is_shared(a)
    experts = 1 if shared else wrapper.num_experts
    whole_a, whole_b = (part.parametrizations["weight"].original if shared else part.weight
                        for part in (a, b))
    return (whole_a.reshape(experts, -1, whole_a.shape[1]),
            whole_b.reshape(len(whole_b), -1, experts).permute(2, 1, 0))


def _is_shared(factor: Any) -> bool:
    return parametrize.is_parametrized(factor, "weight") and isinstance(
        factor.parametrizations["weight"][0], _ForEach)


def spelled_out(adapted: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every shared factor, as peft keeps it."""
    for name, module in adapted.named_modules():
        if _is_shared(module):
            weight: Any = module.weight
            yield f"{name}.weight", weight.detach()
