"""DDP: every rank holds the whole base, and gradients are summed once a step."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorafit.kernels.ulysses import Slice
from lorafit.train.standing import Kind
from lorafit.train.strategy.strategy import Strategy

_BUCKET_NUMBERS = 1 << 24  # gradients that are summed over ranks at once: 64 MiB of float32


class Replicated(Strategy):
    """Ranks meet after all micro-batches of a step (docs/decisions/0031).

    slices: how many ranks, one after the other, share the tokens of a micro-batch (context
    parallelism, docs/decisions/0035). They meet in every layer's attention.
    """

    name = "ddp"

    def __init__(self, accelerator: Any, *, slices: int = 1) -> None:
        super().__init__(accelerator.device)
        self._accelerator = accelerator
        self.rank, self.ranks = accelerator.process_index, accelerator.num_processes
        self.share, self.shares = self.rank // slices, self.ranks // slices
        if slices > 1:
            self.in_lockstep = True
            self.own = Slice(self.rank % slices, slices, _group(self.device, self.shares, slices))

    def wait(self) -> None:
        with self.standing.during(Kind.COMMUNICATION, "waiting for the others"):
            self._accelerator.wait_for_everyone()

    def all_of(self, mine: list[Any]) -> list[Any]:
        everyone: list[Any] = [None] * self.ranks
        with self.standing.during(Kind.COMMUNICATION, "communicating (what was found)"):
            torch.distributed.all_gather_object(everyone, mine)
        return [each for of_rank in everyone for each in of_rank]

    def sum(self, tensor: Tensor) -> Tensor:
        summed: Tensor = self._accelerator.reduce(tensor, reduction="sum")
        return summed

    def sum_slices(self, tensor: Tensor) -> Tensor:
        if self.own is not None:
            torch.distributed.all_reduce(tensor, group=self.own.group)
        return tensor

    @torch.no_grad()
    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """One that no rank has (an expert that no token reached) stays away everywhere, as on one
        rank."""
        held = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        shared = [p for p, ranks in zip(parameters, self.sum(held).tolist(), strict=True) if ranks]
        for p in shared:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        for bucket in _buckets(shared):
            gradients = [p.grad for p in bucket if p.grad is not None]
            flat = self.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [part.view_as(gradient) for part, gradient
                                             in zip(parts, gradients, strict=True)])


def _group(device: torch.device, shares: int, slices: int) -> Any:
    """The ranks that compute slices of the same micro-batches as this one. All ranks together."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, (shares, slices), mesh_dim_names=("share", "slice"))
    return mesh["slice"].get_group()


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Neighbours of one number format, up to _BUCKET_NUMBERS together."""
    bucket: list[nn.Parameter] = []
    for p in parameters:
        is_full = sum(each.numel() for each in bucket) + p.numel() > _BUCKET_NUMBERS
        if bucket and (is_full or p.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(p)
    if bucket:
        yield bucket
