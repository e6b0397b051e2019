"""Two adapters of one base: how alike their ΔW are, layer by layer, without multiplying out."""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from lorafit.errors import UserError
from lorafit.export.delta import factors as thin
from lorafit.export.delta.files import (
    LoraAdapter,
    read_lora,
    refuse_broken,
    refuse_other_than_lora,
)
from lorafit.model.base import resolve_base
from lorafit.model.trained import AdapterSource
from lorafit.model.weights import layer_kind


@dataclass(frozen=True)
class LayerPair:
    """ΔW₁ and ΔW₂ of one weight.

    cosine: tr(ΔW₁ᵀΔW₂) / (‖ΔW₁‖·‖ΔW₂‖). distance: ‖ΔW₁ − ΔW₂‖ / ‖ΔW₁‖. overlap_out, overlap_in:
    mean squared cosine of the principal angles between what they write to (columns of B) and what
    they read from (rows of A): 1 when the smaller space lies in the larger, 0 when orthogonal.
    expected_out, expected_in: the same for random spaces of these sizes. None where a ΔW is zero.
    """

    name: str
    kind: str
    norms: tuple[float, float]
    ranks: tuple[int, int]
    cosine: float | None
    distance: float | None
    overlap_out: float | None
    overlap_in: float | None
    expected_out: float
    expected_in: float


@dataclass(frozen=True)
class Comparison:
    """Pairs of layers that both have, what only one has, and other differences in words."""

    names: tuple[str, str]
    layers: list[LayerPair]
    only_first: list[str]
    only_second: list[str]
    cosine: float | None
    remarks: list[str]

    def kinds(self) -> list[dict[str, Any]]:
        """Means over the layers of each kind."""
        table = []
        for kind in dict.fromkeys(layer.kind for layer in self.layers):
            layers = [layer for layer in self.layers if layer.kind == kind]
            row: dict[str, Any] = {
                "kind": kind, "layers": len(layers),
                "norms": tuple(fmean(layer.norms[i] for layer in layers) for i in (0, 1)),
                "ranks": tuple(max(layer.ranks[i] for layer in layers) for i in (0, 1)),
            }
            for name in ("cosine", "distance", "overlap_out", "overlap_in", "expected_out",
                         "expected_in"):
                known = [value for layer in layers if (value := getattr(layer, name)) is not None]
                row[name] = fmean(known) if known else None
            table.append(row)
        return table

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"kinds": self.kinds()}


def compare_adapters(first: AdapterSource, second: AdapterSource) -> Comparison:
    """UserError when they are not of one base's shapes, or not LoRA."""
    adapters = []
    for source in (first, second):
        refuse_other_than_lora(source, "compared")
        adapters.append(read_lora(source))
        refuse_broken(source, adapters[-1])
    one, other = adapters
    refuse_other_shapes(first, one, second, other)
    common = [name for name in one.layers if name in other.layers]
    if not common:
        raise UserError("the two adapters have no layer in common", str(second.directory),
                        "compare adapters on the same layers of the same base")
    pairs = [_pair(name, one, other) for name in common]
    return Comparison(
        (str(first.directory), str(second.directory)), pairs,
        sorted(one.layers.keys() - other.layers.keys()),
        sorted(other.layers.keys() - one.layers.keys()),
        _cosine_of_all(common, one, other), _remarks(first, second),
    )


def refuse_other_shapes(first: AdapterSource, one: LoraAdapter,
                        second: AdapterSource, other: LoraAdapter) -> None:
    """UserError when a layer of both has different shapes: they are not of one base."""
    for name, layer in one.layers.items():
        if name in other.layers and layer.factors.shape != other.layers[name].factors.shape:
            shapes = [" × ".join(map(str, adapter.layers[name].factors.shape[1:]))
                      for adapter in (one, other)]
            raise UserError(
                f"the adapters are of different bases: {name} is {shapes[0]} in "
                f"{first.directory} and {shapes[1]} here", str(second.directory),
                "use adapters of the same base")


def different_bases(first: AdapterSource, second: AdapterSource) -> bool:
    """Whether they name different bases; of directories, whether these are different ones."""
    return _base_place(first) != _base_place(second)


def _base_place(source: AdapterSource) -> str:
    place = Path(resolve_base(source.model.base))
    return str(place.resolve()) if place.is_dir() else str(place)


def _pair(name: str, one: LoraAdapter, other: LoraAdapter) -> LayerPair:
    a, b = one.layers[name].factors, other.layers[name].factors
    norms = thin.norm(a), thin.norm(b)
    out, into = _sides(a, b)
    _, outputs, inputs = a.shape
    larger = max(a.rank, b.rank)
    expected = min(1.0, larger / outputs), min(1.0, larger / inputs)
    ranks = a.rank, b.rank
    if not all(norms):
        return LayerPair(name, layer_kind(name), norms, ranks, None, None, None, None, *expected)
    # The difference as factors of its own: exact where the two are nearly equal.
    distance = thin.norm(thin.side_by_side([a, b.times(-1)])) / norms[0]
    cosine = max(-1.0, min(1.0, thin.inner_product(a, b) / (norms[0] * norms[1])))
    return LayerPair(name, layer_kind(name), norms, ranks, cosine, distance, out, into, *expected)


def _sides(a: thin.Factors, b: thin.Factors) -> tuple[float, float]:
    """Overlap of the spaces that two updates write to, and of those that they read from."""
    (left_a, values_a, right_a), (left_b, values_b, right_b) = map(thin.decompose, (a, b))
    outs, ins = [], []
    for expert in range(a.shape[0]):
        rank_a = thin.rank_for(values_a[expert : expert + 1], 1.0)
        rank_b = thin.rank_for(values_b[expert : expert + 1], 1.0)
        smaller = min(rank_a, rank_b)
        out = left_a[expert, :, :rank_a].T @ left_b[expert, :, :rank_b]
        into = right_a[expert, :rank_a] @ right_b[expert, :rank_b].T
        outs.append(float(out.square().sum()) / smaller)
        ins.append(float(into.square().sum()) / smaller)
    return fmean(outs), fmean(ins)


def _cosine_of_all(names: list[str], one: LoraAdapter, other: LoraAdapter) -> float | None:
    """Of all common layers as one long vector."""
    pairs = [(one.layers[name].factors, other.layers[name].factors) for name in names]
    product = sum(thin.inner_product(a, b) for a, b in pairs)
    norms = [torch.tensor([thin.norm(pair[i]) for pair in pairs], dtype=torch.float64).norm()
             for i in (0, 1)]
    size = float(norms[0] * norms[1])
    return product / size if size else None


def _remarks(first: AdapterSource, second: AdapterSource) -> list[str]:
    remarks = []
    if different_bases(first, second):
        remarks.append(f"the bases have different names: {first.model.base} and "
                       f"{second.model.base}; only if they are one model do the figures mean "
                       "something")
    for source in (first, second):
        if source.config.get("use_dora"):
            remarks.append(f"{source.directory} is DoRA: scale·B·A is compared, without the "
                           "magnitudes")
        if source.config.get("modules_to_save"):
            remarks.append(f"{source.directory} also has layers trained in full, which are not "
                           "compared")
    return remarks
