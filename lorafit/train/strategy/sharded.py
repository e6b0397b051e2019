"""FSDP2: base, adapter and optimizer state are cut up among ranks, by torch's `fully_shard`.

A decoder layer's weights are gathered before it is computed, forward and backward, and dropped
after; what stands outside the layers (embeddings, last norm, head) is gathered once a step's pass.
Frozen weights have no gradients, so only those of the adapter are summed and cut up, after the last
micro-batch of a step. HSDP is the same within groups of ranks, a machine each: weights are gathered
from neighbours alone, and gradients are summed over the groups.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lorafit.model.parts import local_part
from lorafit.train.strategy.replicated import Replicated
from lorafit.train.strategy.told_collectives import ToldAllGather, ToldReduceScatter

Answer = TypeVar("Answer")


class Sharded(Replicated):
    """offloads: parts that are not at work wait in the host's memory, where they are updated too.
    replicas: how many groups of neighbouring ranks hold everything once.
    """

    in_lockstep = True
    cuts_up = True

    def __init__(self, accelerator: Any, *, offloads: bool = False, replicas: int = 1,
                 slices: int = 1) -> None:
        super().__init__(accelerator, slices=slices)
        self.name = "fsdp" if replicas == 1 else "hsdp"
        self._offloads, self._replicas = offloads, replicas
        self._root: Any = None
        self._owners: dict[int, Any] = {}

    def place(self, module: nn.Module, layers: Sequence[nn.Module]) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import (
            CPUOffloadPolicy,
            OffloadPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )

        if not torch.distributed.is_initialized():  # one process, whose parts are offloaded
            distributed: Any = torch.distributed
            distributed.init_process_group(rank=0, world_size=1, store=distributed.HashStore())
        sizes, names = (self._replicas, self.ranks // self._replicas), ("replicas", "parts")
        first = 0 if self._replicas > 1 else 1
        mesh = init_device_mesh(self.device.type, sizes[first:], mesh_dim_names=names[first:])
        policy = (CPUOffloadPolicy(pin_memory=self.device.type == "cuda") if self._offloads
                  else OffloadPolicy())
        self._root = module
        self._owners = {id(part): layer for layer in layers for part in layer.modules()}
        for group in (*layers, module):
            group.to(self.device)  # one at a time: a device never holds more than its parts
            fully_shard(group, mesh=mesh, reshard_after_forward=group is not module,
                        offload_policy=policy)
            sharded: Any = group
            sharded.set_gradient_divide_factor(1.0)  # sums, divided once by the step's tokens
            sharded.set_force_sum_reduction_for_comms(True)
            if hasattr(sharded, "set_custom_all_gather"):
                sharded.set_custom_all_gather(ToldAllGather(lambda: self.standing))
                sharded.set_custom_reduce_scatter(ToldReduceScatter(lambda: self.standing))
        register_fsdp_forward_method(module, "call")

    @contextmanager
    def at_hand(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        owners = {id(owner): owner for owner in (self._owners.get(id(m)) for m in modules)
                  if owner is not None}
        for owner in owners.values():
            owner.unshard()
        try:
            yield
        finally:
            for owner in owners.values():
                owner.reshard()

    def run(self, module: nn.Module, function: Callable[[], Answer]) -> Answer:
        answer: Answer = self._root.call(function)
        self._root.reshard()
        return answer

    def before_pass(self, module: nn.Module, *, is_last: bool) -> None:
        sharded: Any = module
        sharded.set_requires_gradient_sync(is_last)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """They were summed as they were cut up."""

    @torch.no_grad()
    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        gradients = [local_part(p.grad) for p in parameters if p.grad is not None]
        total = torch.zeros((), dtype=torch.float64)
        held = [g for g in gradients if g.numel()]
        if held:  # else all have fewer rows than there are ranks
            squares = [norm.double().square() for norm in torch._foreach_norm(held)]
            total = torch.stack(squares).sum()
        norm = (self.sum(total.to(self.device)) / self._replicas).sqrt()
        factor = float((limit / (norm + 1e-6)).clamp(max=1.0))  # as torch's clip_grad_norm_
        torch._foreach_mul_(gradients, factor)
        return norm

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[None]:
        self._root.reshard()  # here on all ranks, or state_dict does it on the one that saves
        replaced = []
        for path, module in model.named_modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                # Frozen weights of the adapter (A of LoRA-FA) stand in its file too.
                if parameter.requires_grad or "default" in (*path.split("."), name):
                    gathered = self.whole_tensor(parameter.detach())
                    if self.is_main:
                        replaced.append((module, name, parameter))
                        module._parameters[name] = nn.Parameter(
                            gathered.cpu(), requires_grad=parameter.requires_grad)
        try:
            yield
        finally:
            for module, name, parameter in replaced:
                module._parameters[name] = parameter

    def whole_tensor(self, tensor: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        if not isinstance(tensor, DTensor):
            return tensor
        if tensor.to_local().device != self.device:  # offloaded: ranks meet on the device
            tensor = DTensor.from_local(
                tensor.to_local().to(self.device), tensor.device_mesh, tensor.placements,
                run_check=False, shape=tensor.shape, stride=tensor.stride())
        return tensor.full_tensor()

    def part_of(self, whole: Tensor, parameter: nn.Parameter) -> Tensor:
        from torch.distributed.tensor import DTensor

        if not isinstance(parameter, DTensor):
            return whole
        mine = parameter.to_local()
        per_rank = -(-parameter.shape[0] // parameter.device_mesh.size(-1))  # as torch.chunk cuts
        start = per_rank * parameter.device_mesh.get_local_rank(-1)
        local = whole[start : start + len(mine)].to(mine.device)
        return DTensor.from_local(local, parameter.device_mesh, parameter.placements,
                                  run_check=False, shape=parameter.shape,
                                  stride=parameter.stride())

