"""Trained weights of a 16-bit base, kept in float32.

A weight near 1 has steps of 0.004 to 0.008 in bfloat16: smaller updates would be lost. So a trained
weight of the base itself (a norm, a bias, a layer of modules_to_save) is held in float32 and
converted where it is used; the model computes as if it were 16 bits, which is also what whoever
loads the saved weight into a 16-bit model gets.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class _Converted(nn.Module):
    """The weight as the model computes with it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, weight: Tensor) -> Tensor:
        return weight.to(self.dtype)


def train_in_float32(model: nn.Module) -> None:
    """Hold every trained 16-bit parameter in float32. A shared one stays shared."""
    held: dict[int, nn.Parameter] = {}
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad or parameter.dtype not in (torch.float16,
                                                                       torch.bfloat16):
                continue
            wide = held.setdefault(id(parameter), nn.Parameter(parameter.detach().float()))
            setattr(module, name, wide)
            parametrize.register_parametrization(module, name, _Converted(parameter.dtype),
                                                 unsafe=True)


def plain_name(name: str) -> str:
    """The name of a parameter as it is without what `train_in_float32` puts in between."""
    head, marker, tail = name.partition("parametrizations.")
    return head + tail.removesuffix(".original") if marker else name
