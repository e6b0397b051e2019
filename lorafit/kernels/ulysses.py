"""Attention over a row whose tokens lie on several ranks (DeepSpeed-Ulysses, arXiv 2309.14509).

Each rank has a slice of the tokens with all heads. An exchange gives it all tokens with a share of
the heads, attention is computed on whole sequences as on one rank, and a second exchange gives back
its tokens with all heads.

Letters: N ranks, L tokens of a slice, T = N·L of the row, Q and K query and key heads, D and E the
width of keys and of values.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Slice:
    """The part of every row's tokens that this rank holds: number `part` of `parts` equal ones.

    group: the ranks that hold the others, in this order (a torch.distributed.ProcessGroup).
    """

    part: int
    parts: int
    group: Any = None


def ulysses_attention(q: Tensor, k: Tensor, v: Tensor, own: Slice,
                      attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """(1, L, Q, E) from q (1, Q, L, D), k (1, K, L, D) and v (1, K, L, E). All ranks together.

    `attend` computes (1, T, Q/N, E) from whole rows: q (1, Q/N, T, D), k and v with as many heads
    or fewer. Q is a multiple of N. Where K is not, key heads are repeated up to the least common
    multiple of both, so that a rank has those of its query heads. ValueError where Q is none.
    """
    ranks, tokens = own.parts, q.shape[2]
    if q.shape[1] % ranks:
        raise ValueError(f"{q.shape[1]} heads cannot be shared by {ranks} ranks")
    times = math.lcm(k.shape[1], ranks) // k.shape[1]
    if times > 1:
        k, v = (t.repeat_interleave(times, dim=1) for t in (k, v))
    # One exchange for all three: (N, L, W), for each rank its heads of this rank's tokens.
    sent = torch.cat([t.view(ranks, -1, tokens, t.shape[-1]).transpose(1, 2).flatten(2)
                      for t in (q[0], k[0], v[0])], dim=2)
    row = _exchanged(sent, own.group).flatten(0, 1)
    heads, start = [], 0
    for t in (q, k, v):
        width = t.shape[1] // ranks * t.shape[3]
        columns = row[:, start : start + width]
        heads.append(columns.view(len(row), -1, t.shape[3]).transpose(0, 1)[None])
        start += width
    out = attend(*heads)[0]
    mine = _exchanged(out.view(ranks, tokens, *out.shape[1:]), own.group)
    return mine.transpose(0, 1).flatten(1, 2)[None]


class _Exchange(torch.autograd.Function):
    """Row i of (N, …) goes to rank i; row i of what comes back is from rank i. Its own inverse."""

    @staticmethod
    def forward(context: Any, sent: Tensor, group: Any) -> Tensor:
        context.group = group
        return _all_to_all(sent, group)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(gradient, context.group), None


def _exchanged(sent: Tensor, group: Any) -> Tensor:
    received: Tensor = _Exchange.apply(sent, group)  # type: ignore[no-untyped-call]
    return received


def _all_to_all(sent: Tensor, group: Any) -> Tensor:
    sent = sent.contiguous()
    received = torch.empty_like(sent)
    torch.distributed.all_to_all_single(received, sent, group=group)
    return received
