"""ΔW of one layer as the product of two thin matrices, and what can be known without multiplying.

Shapes: E experts that share a layer (1 for a weight of its own), O outputs, I inputs, r rank,
k = min(r, O, I). With thin QR decompositions b = Q_b·R_b and aᵀ = Q_a·R_a the singular values of
b·a are those of R_b·R_aᵀ, which is r × r: milliseconds where the product would take minutes.
Everything is computed in float64, so that the factors' own precision is what limits a result.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Energy below this share of the whole is rounding of float32 factors: (2⁻²⁴)² ≈ 4e-15.
_ROUNDING = 1e-14


@dataclass(frozen=True)
class Factors:
    """ΔW = b·a of one weight, the adapter's scale included in b.

    a: (E, r, I), b: (E, O, r), float64.
    """

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        return self.a.shape[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(E, O, I)"""
        return self.b.shape[0], self.b.shape[1], self.a.shape[2]

    def dense(self) -> Tensor:
        """(E, O, I)"""
        return self.b @ self.a

    def times(self, weight: float) -> "Factors":
        return Factors(self.a, weight * self.b)


def side_by_side(parts: list[Factors]) -> Factors:
    """The sum of several updates of one weight, exactly: the rank is the sum of their ranks."""
    return Factors(torch.cat([part.a for part in parts], dim=1),
                   torch.cat([part.b for part in parts], dim=2))


def singular_values(factors: Factors) -> Tensor:
    """(E, k), descending."""
    inner, outer = torch.linalg.qr(factors.b).R, torch.linalg.qr(factors.a.mT).R
    return torch.linalg.svdvals(inner @ outer.mT)


def decompose(factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """U (E, O, k), singular values (E, k) and Vᵀ (E, k, I)."""
    left, inner = torch.linalg.qr(factors.b)
    right, outer = torch.linalg.qr(factors.a.mT)
    u, values, v = torch.linalg.svd(inner @ outer.mT, full_matrices=False)
    return left @ u, values, v @ right.mT


def norm(factors: Factors) -> float:
    """Frobenius norm over all experts."""
    return float(torch.linalg.vector_norm(singular_values(factors)))


def inner_product(one: Factors, other: Factors) -> float:
    """tr(ΔW₁ᵀΔW₂) = Σ (b₁ᵀb₂) ∘ (a₁a₂ᵀ), over all experts."""
    return float(((one.b.mT @ other.b) * (one.a @ other.a.mT)).sum())


def effective_rank(values: Tensor) -> float:
    """exp(H(p)) with p = σ / Σσ (Roy & Vetterli 2007): from 1 to the number of values.

    The mean over experts. values: (E, k).
    """
    share = values / values.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(share).sum(dim=-1).exp().mean())


def rank_for(values: Tensor, share: float) -> int:
    """The smallest rank that keeps `share` of Σσ², the same for all experts; at least 1.

    values: (E, k), descending. With share 1 what goes is rounding.
    """
    energy = values.square()
    tail = energy.flip(-1).cumsum(-1).flip(-1)  # tail[i]: what goes with rank i
    allowed = ((1 - share) + _ROUNDING) * tail[:, :1]
    return max(1, int((tail > allowed).sum(dim=-1).max()))


def cut(factors: Factors, rank: int) -> Factors:
    """The nearest update of `rank` or less (Eckart & Young), with factors of equal norm."""
    u, values, v = decompose(factors)
    root = values[:, :rank].sqrt()
    return Factors(root[:, :, None] * v[:, :rank], u[:, :, :rank] * root[:, None, :])


def energy_kept(values: Tensor, rank: int) -> float:
    """Share of Σσ² over all experts in the first `rank` values; 1 where there is none at all."""
    whole = float(values.square().sum())
    return float(values[:, :rank].square().sum()) / whole if whole else 1.0
