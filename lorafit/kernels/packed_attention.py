"""Causal attention over documents that stand end to end in one row.

A document sees itself only. No mask over the row is made: on CUDA torch's variable-length attention
takes the documents' bounds, elsewhere each document is a call of its own, whose work is its own
length squared.

Letters: T tokens of the row, Q and K query and key heads (Q a multiple of K), D their width.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lorafit.kernels.ulysses import Slice, ulysses_attention


@dataclass(frozen=True)
class Documents:
    """Where the documents of a row end.

    lengths: in tokens. bounds: (documents + 1,) int32 on the device of the row, from 0 to T; None
    where only lengths are used. own: what this rank holds of the row; None for all of it.
    """

    lengths: tuple[int, ...]
    bounds: Tensor | None = None
    own: Slice | None = None

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Documents":
        bounds = self.bounds
        return self if bounds is None else replace(
            self, bounds=bounds.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Documents":
        return self if self.bounds is None else replace(self, bounds=self.bounds.pin_memory())


def packed_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents, *,
                     scale: float | None = None, window: int | None = None,
                     dropout: float = 0.0) -> Tensor:
    """(1, T, Q, D) from q (1, Q, T, D) and k, v (1, K, T, D).

    scale: of the scores, 1/√D if left out. window: a token sees itself and at most window − 1
    before it. Where ranks hold slices of the row (`documents.own`), T is a slice's on both sides,
    and all of them call this together.
    """
    if documents.own is not None:
        whole = replace(documents, own=None)
        return ulysses_attention(q, k, v, documents.own, lambda q, k, v: packed_attention(
            q, k, v, whole, scale=scale, window=window, dropout=dropout))
    if documents.bounds is not None and dropout == 0 and takes_bounds(q):
        return _by_bounds(q, k, v, documents.bounds, documents.longest, scale, window)
    each = (torch.split_with_sizes(t, list(documents.lengths), 2) for t in (q, k, v))
    outputs = [_one(a, b, c, scale, window, dropout) for a, b, c in zip(*each, strict=True)]
    return torch.cat(outputs, dim=1)


def reference_packed_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents, *,
                               scale: float | None = None, window: int | None = None) -> Tensor:
    """The same by one dense mask over the row."""
    number = torch.repeat_interleave(
        torch.arange(len(documents.lengths), device=q.device),
        torch.tensor(documents.lengths, device=q.device))
    place = torch.arange(q.shape[2], device=q.device)
    distance = place[:, None] - place
    seen = (number[:, None] == number) & (distance >= 0)
    if window is not None:
        seen &= distance < window
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    scores = (q @ k.transpose(2, 3)) * (scale or q.shape[-1] ** -0.5)
    shares = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return (shares @ v).transpose(1, 2)


def takes_bounds(q: Tensor) -> bool:
    """Whether torch has an attention for this tensor that takes the bounds of documents."""
    return (q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] <= 256
            and {"window_size", "scale"} <= set(_varlen_parameters())
            and torch.cuda.get_device_capability(q.device) >= (8, 0))


def _one(q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int | None,
         dropout: float) -> Tensor:
    """Attention within one document, (1, length, Q, D)."""
    length = q.shape[2]
    if q.shape[1] != k.shape[1]:
        # repeated here: torch's grouped attention falls back to a slow kernel on CPUs
        k, v = (_repeated(t, q.shape[1] // t.shape[1]) for t in (k, v))
    mask = None
    if window is not None and window < length:
        place = torch.arange(length, device=q.device)
        distance = place[:, None] - place
        mask = (distance >= 0) & (distance < window)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout,
                                         is_causal=mask is None, scale=scale)
    return out.transpose(1, 2)


def _repeated(t: Tensor, times: int) -> Tensor:
    """(1, K, T, D) with each head `times` times in a row."""
    one, heads, tokens, width = t.shape
    wide = t[:, :, None].expand(one, heads, times, tokens, width)
    return wide.reshape(one, heads * times, tokens, width)


def _by_bounds(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int,
               scale: float | None, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (t[0].transpose(0, 1) for t in (q, k, v))
    options: dict[str, Any] = {}
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in _varlen_parameters():
            options["enable_gqa"] = True
        else:
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    before = -1 if window is None else window - 1
    out: Any = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scale,
                           window_size=(before, 0), **options)
    return out[None]


@cache
def _varlen_parameters() -> Sequence[str]:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return ()
    return tuple(inspect.signature(varlen_attn).parameters)
