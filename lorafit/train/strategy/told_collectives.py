"""Collectives of a sharded base, which say that they are under way and how long they took.

fully_shard takes its own in their place (`set_custom_all_gather` of torch 2.9 and newer); what they
do is what torch's do.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from lorafit.train.standing import Standing


class _Told:
    def __init__(self, standing: Callable[[], Standing]) -> None:
        self._standing = standing

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class ToldAllGather(_Told):
    """Weights of a group of layers, from all ranks that hold parts of them."""

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any,
                 async_op: bool = False) -> Any:
        with self._standing().reducing(output_tensor.device, "gathering weights"):
            return dist.all_gather_into_tensor(output_tensor, input_tensor, group=group,
                                               async_op=async_op)


class ToldReduceScatter(_Told):
    """Gradients, summed and cut up."""

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any,
                 async_op: bool = False) -> Any:
        with self._standing().reducing(output_tensor.device, "communicating (gradients)"):
            return dist.reduce_scatter_tensor(output_tensor, input_tensor, op=op, group=group,
                                              async_op=async_op)
