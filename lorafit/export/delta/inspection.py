"""Each layer's ΔW in figures, and what is known of how it was trained."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import groupby
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file

from lorafit.export.delta import factors as thin
from lorafit.export.delta.base import BaseWeights, open_base
from lorafit.export.delta.facts import training_facts
from lorafit.export.delta.files import LoraLayer, read_lora
from lorafit.export.delta.merged import full_updates, merged_updates
from lorafit.model.adapters.files import WEIGHTS, method_of, only_on
from lorafit.model.trained import AdapterSource
from lorafit.model.weights import layer_kind
from lorafit.recipe.methods import METHODS

ENERGY = 0.99  # of Σσ², for `rank_99`
_DENSE_SPECTRUM = 2048  # largest smaller side of a dense ΔW whose spectrum is computed


@dataclass(frozen=True)
class LayerUpdate:
    """ΔW of one weight.

    norm: ‖ΔW‖ (Frobenius). relative: ‖ΔW‖ / ‖W‖, None where W is not at hand. rank: that it was
    given, None for methods without. singular_values: of ΔW, descending; of s·B·A with DoRA; over
    experts the root of the mean square. effective_rank: exp of the entropy of σ / Σσ.
    rank_99: singular values that hold 99 % of Σσ². first_share: σ₁² / Σσ². problem: why the layer
    does nothing, or harm; empty for a sound one.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    norm: float | None
    relative: float | None = None
    rank: int | None = None
    scale: float | None = None
    singular_values: tuple[float, ...] = ()
    effective_rank: float | None = None
    rank_99: int | None = None
    first_share: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class KindOfLayer:
    """Means over the layers of one kind and shape; rank_99 and relative_max are the largest.

    spectrum: σᵢ / σ₁.
    """

    kind: str
    shape: tuple[int, ...]
    layers: int
    norm: float | None
    relative: float | None
    relative_max: float | None
    rank: float | None
    scale: float | None
    effective_rank: float | None
    rank_99: int | None
    first_share: float | None
    spectrum: tuple[float, ...]


@dataclass(frozen=True)
class Inspection:
    """What an adapter is and does to its base.

    measured: how ΔW was had, or why not. facts: of how it was trained, by name. tensors: norms of
    the file's tensors where there is no ΔW. remarks: whatever a reader should know besides.
    """

    directory: str
    base: str
    base_at_hand: bool
    method: str
    measured: str
    size_bytes: int
    parameters: int
    layers: list[LayerUpdate]
    in_full: dict[str, int]
    tensors: dict[str, float | None]
    facts: dict[str, str]
    remarks: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[LayerUpdate]:
        return [layer for layer in self.layers if layer.problem]

    def kinds(self) -> list[KindOfLayer]:
        """The layers that do something, by kind, in the order of the file."""
        def key(layer: LayerUpdate) -> tuple[Any, ...]:
            return layer.kind, layer.shape
        sound = sorted((layer for layer in self.layers if not layer.problem), key=key)
        return [_summary(list(layers)) for _, layers in groupby(sound, key=key)]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"kinds": [asdict(kind) for kind in self.kinds()]}


def inspect_adapter(source: AdapterSource, *, with_base: bool = True) -> Inspection:
    """Measure every layer. Of the base one tensor at a time is read, where LoRA's factors do.

    with_base: off, the base's weights are left alone, and what needs them is not told.

    UserError when the adapter is damaged or does not fit its base.
    """
    base = open_base(source.model) if with_base else None
    method = method_of(source.config)
    tensors = load_file(source.directory / WEIGHTS)
    remarks: list[str] = []
    norms: dict[str, float | None] = {}
    in_full: dict[str, int] = {}
    if base is None and with_base:
        remarks.append(f"the base {source.model.base} is not on this machine: no norms relative "
                       "to it; name a copy with --base")
    if stored := only_on(source.directory):
        remarks.append(f"valid on the base in {stored} only: ΔW also holds what makes up for what "
                       f"{stored} loses (LoftQ)")
    if method == "lora" or (method == "paca" and base is not None):
        layers, in_full, measured = _lora_layers(source, base, remarks)
    elif base is not None and (method not in METHODS or METHODS[method].merges):
        updates = full_updates if method == "full" else merged_updates
        layers = [_from_dense(*update) for update in updates(source, base)]
        measured = "ΔW = W' − W of the merged weights"
        if any(min(layer.shape) > _DENSE_SPECTRUM for layer in layers if len(layer.shape) == 2):
            remarks.append("no spectra of weights whose smaller side is above "
                           f"{_DENSE_SPECTRUM:,}: they would take minutes each")
    else:
        layers = []
        norms = {name: _finite(float(tensor.double().norm())) for name, tensor in tensors.items()}
        why = METHODS[method].why_not_merged if method in METHODS else ""
        measured = f"norms of the adapter's own tensors: {why or 'ΔW needs the base'}"
    remarks += [f"{name} holds values that are not finite" for name, tensor in tensors.items()
                if not bool(torch.isfinite(tensor).all())]
    return Inspection(
        str(source.directory), source.model.base, base is not None, method, measured,
        (source.directory / WEIGHTS).stat().st_size,
        sum(tensor.numel() for tensor in tensors.values()), layers, in_full, norms,
        training_facts(source), remarks,
    )


def _lora_layers(source: AdapterSource, base: BaseWeights | None,
                 remarks: list[str]) -> tuple[list[LayerUpdate], dict[str, int], str]:
    adapter = read_lora(source)
    layers = [_from_factors(layer, None if base is None else base.weight(layer.weight_name))
              for layer in adapter.layers.values()]
    unknown = sum(layer.relative is None and not layer.problem for layer in layers)
    if base is not None and unknown:
        remarks.append(f"{unknown} of {len(layers)} adapted weights are not in the base's files "
                       "in that form (fused or quantised there): no norms relative to them")
    in_full = {name.removeprefix("base_model.model."): tensor.numel()
               for name, tensor in adapter.others.items() if "lora_" not in name}
    if not source.config.get("use_dora"):
        return layers, in_full, ("ΔW = D·A, whose A picks columns"
                                 if method_of(source.config) == "paca" else "ΔW = scale·B·A")
    return layers, in_full, ("norms of W' − W with DoRA's magnitudes; spectra of scale·B·A"
                             if base is not None else "scale·B·A, without DoRA's magnitudes, "
                             "which need the base")


def _from_factors(layer: LoraLayer, weight: torch.Tensor | None) -> LayerUpdate:
    factors = layer.factors
    experts, outputs, inputs = factors.shape
    shape = (inputs, outputs) if layer.embedding else (outputs, inputs)
    about: dict[str, Any] = {
        "name": layer.name, "kind": layer_kind(layer.name), "rank": factors.rank,
        "shape": (experts, *shape) if layer.parameter else shape,
        "scale": layer.scale,
    }
    if not (torch.isfinite(factors.a).all() and torch.isfinite(factors.b).all()):
        return LayerUpdate(norm=None, problem="A or B holds values that are not finite", **about)
    values = thin.singular_values(factors)
    norm = float(torch.linalg.vector_norm(values))
    if norm == 0 and layer.magnitude is None:
        zero = "B" if not factors.b.any() else "A" if not factors.a.any() else "B·A"
        return LayerUpdate(norm=0.0, problem=f"{zero} is zero: the layer changes nothing", **about)
    if layer.magnitude is not None and weight is not None:
        norm = _dora_norm(layer, weight)
    relative = None if weight is None else norm / max(float(weight.norm()), 1e-30)
    return LayerUpdate(norm=norm, relative=relative, **_spectrum(values), **about)


def _dora_norm(layer: LoraLayer, weight: torch.Tensor) -> float:
    """‖W' − W‖ with W' = m ∘ (W + ΔW) / ‖W + ΔW‖, norms over the inputs (arXiv 2402.09353)."""
    assert layer.magnitude is not None
    delta = layer.factors.dense()[0].float()
    moved = weight + (delta if weight.shape == delta.shape else delta.T)
    if layer.embedding:
        moved, weight = moved.T, weight.T
    lengths = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
    return float((layer.magnitude.float().reshape(-1, 1) / lengths * moved - weight).norm())


def _from_dense(name: str, delta: torch.Tensor | None, weight: torch.Tensor) -> LayerUpdate:
    kind, shape = layer_kind(name).removesuffix(".weight"), tuple(weight.shape)
    if delta is None:
        return LayerUpdate(name, kind, shape, 0.0, problem="the weight is what it was in the base")
    if not torch.isfinite(delta).all():
        return LayerUpdate(name, kind, shape, None, problem="ΔW holds values that are not finite")
    norm = float(delta.norm())
    relative = norm / max(float(weight.norm()), 1e-30)
    if delta.ndim != 2 or min(shape) > _DENSE_SPECTRUM:
        return LayerUpdate(name, kind, shape, norm, relative)
    return LayerUpdate(name, kind, shape, norm, relative,
                       **_spectrum(torch.linalg.svdvals(delta)[None]))


def _spectrum(values: torch.Tensor) -> dict[str, Any]:
    """values: (E, k)."""
    together = values.square().mean(dim=0).sqrt()
    energy = together.square()
    return {
        "singular_values": tuple(together.tolist()),
        "effective_rank": thin.effective_rank(values),
        "rank_99": thin.rank_for(values, ENERGY),
        "first_share": float(energy[0] / energy.sum().clamp_min(1e-300)),
    }


def _summary(layers: list[LayerUpdate]) -> KindOfLayer:
    """Of layers of one kind and shape."""
    def known(name: str) -> list[Any]:
        return [value for layer in layers if (value := getattr(layer, name)) is not None]

    ranks = known("rank_99")
    longest = max((len(layer.singular_values) for layer in layers), default=0)
    shapes = [_normalised(layer.singular_values, longest) for layer in layers
              if layer.singular_values]
    return KindOfLayer(
        layers[0].kind, layers[0].shape, len(layers), _mean(known("norm")),
        _mean(known("relative")), max(known("relative"), default=None), _mean(known("rank")),
        _mean(known("scale")), _mean(known("effective_rank")), max(ranks, default=None),
        _mean(known("first_share")),
        tuple(fmean(column) for column in zip(*shapes, strict=True)),
    )


def _normalised(values: Iterable[float], length: int) -> list[float]:
    listed = list(values)
    first = listed[0] or 1.0
    return [value / first for value in listed] + [0.0] * (length - len(listed))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None

