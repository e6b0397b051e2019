"""An adapter at one rank and one scale, for programs that have one of each for all layers.

Programs that know ranks and scales by layer know them by version; one rank, alpha / rank as the
scale and no patterns is what every version computes alike. Nothing is lost: a lower rank is filled
up with zeros, and a scale of its own goes into B.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lorafit.export.delta.files import LoraAdapter, LoraLayer


@dataclass(frozen=True)
class Pair:
    """A (rank, in) and B (out, rank) of a layer; DoRA's magnitude (out,) where there is one."""

    a: Tensor
    b: Tensor
    embedding: bool = False
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class OneRank:
    """W + scale·B·A for each layer, by its name in the base.

    changed: what had to be done to the numbers, in words; empty where they are the trained ones.
    """

    rank: int
    scale: float
    layers: dict[str, Pair]
    changed: str = ""

    @property
    def alpha(self) -> float:
        """scale·rank, as an integer where it is one."""
        alpha = self.scale * self.rank
        return int(alpha) if float(alpha).is_integer() else alpha


def at_one_rank(adapter: LoraAdapter) -> OneRank:
    """The adapter's layers, none of them of fused experts, at the largest of their ranks."""
    layers = adapter.layers
    rank = max(layer.factors.rank for layer in layers.values())
    scales = {layer.scale for layer in layers.values()}
    common = scales.pop() if len(scales) == 1 else None
    steps = []
    if any(layer.factors.rank != rank for layer in layers.values()):
        steps.append(f"ranks filled up to {rank} with zeros")
    if common is None:
        steps.append("scales put into B")
    return OneRank(rank, 1.0 if common is None else common,
                   {name: _pair(layer, rank, common) for name, layer in layers.items()},
                   " and ".join(steps))


def _pair(layer: LoraLayer, rank: int, common: float | None) -> Pair:
    """`common`: the scale that all layers have; None where each B takes its own."""
    a, b = layer.factors.a[0], layer.factors.b[0]
    if common is not None:
        b, dtype = b / layer.scale, layer.dtype  # back to the numbers that are stored, to the bit
    else:
        dtype = torch.float32  # a product of 16-bit numbers has more digits than they have
    missing = rank - layer.factors.rank
    return Pair(F.pad(a, (0, 0, 0, missing)).to(dtype).contiguous(),
                F.pad(b, (0, missing)).to(dtype).contiguous(), layer.embedding, layer.magnitude)
