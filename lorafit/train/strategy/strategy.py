"""What the training room asks of the way that a run is spread, answered for one process alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lorafit.data.batches import Batch
from lorafit.data.slices import sliced
from lorafit.kernels.ulysses import Slice
from lorafit.train.standing import Standing

Answer = TypeVar("Answer")


class Strategy:
    """One process that holds everything. The others override what is different for them.

    device: where this rank computes. rank of ranks: its number in the job. Micro-batches of a step
    are dealt out to `shares` groups of ranks, and this rank computes those of number `share`.
    standing: what this rank is at.
    in_lockstep: whether ranks meet within every forward and backward pass, so that none of them can
    compute anything alone or one micro-batch more than the others. cuts_up: whether a rank holds
    parts of the weights only. own: the slice of each micro-batch's tokens that this rank of its
    group computes; None where a group is one rank.
    """

    name = "single"
    in_lockstep = False
    cuts_up = False
    own: Slice | None = None
    rank, ranks = 0, 1
    share, shares = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.standing = Standing()

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks and writes for the job."""
        return self.rank == 0

    @property
    def part(self) -> int:
        """Number of the slice that this rank computes, in its group."""
        return 0 if self.own is None else self.own.part

    def wait(self) -> None:
        """Until all ranks are here."""

    def all_of(self, mine: list[Any]) -> list[Any]:
        """What each rank found, one after the other, on every rank. Values that can be pickled."""
        return mine

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place of the tensor."""
        return tensor

    def sum_slices(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks that compute slices of one micro-batch, in place of the tensor."""
        return tensor

    def mine(self, batch: Batch) -> Batch:
        """What this rank computes of a micro-batch of its group."""
        return batch if self.own is None else sliced(batch, self.own)

    def place(self, module: nn.Module, layers: Sequence[nn.Module]) -> None:
        """Put the weights of a model where they belong. module: what training calls; layers: the
        decoder's, of which one at a time is computed. Comes before an optimizer knows them."""

    @contextmanager
    def at_hand(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        """The whole weights of some modules, for calling them by themselves. All ranks together."""
        yield

    def run(self, module: nn.Module, function: Callable[[], Answer]) -> Answer:
        """Call a function that calls parts of `module`. All ranks together where in_lockstep."""
        return function()

    def before_pass(self, module: nn.Module, *, is_last: bool) -> None:
        """Called before each micro-batch of a step. is_last: its gradients are all there after."""

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Put the sum over ranks into every gradient, once a step."""

    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        """Scale all gradients down to a norm of `limit`; their Euclidean norm before, a scalar."""
        return nn.utils.clip_grad_norm_(parameters, limit)

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[None]:
        """The trained weights whole in the model, on the main rank, for saving. All ranks."""
        yield

    def whole_tensor(self, tensor: Tensor) -> Tensor:
        """A tensor of the optimizer's state in one piece, on the main rank. All ranks."""
        return tensor

    def part_of(self, whole: Tensor, parameter: nn.Parameter) -> Tensor:
        """This rank's part of a whole tensor that belongs to a trained parameter of its shape."""
        return whole


ALONE = Strategy(torch.device("cpu"))

