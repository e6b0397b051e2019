"""A LoRA adapter's file as factors, and factors as a file that plain peft loads."""

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lorafit.errors import UserError
from lorafit.export.delta.factors import Factors
from lorafit.model.adapters import paca
from lorafit.model.adapters.files import CONFIG, WEIGHTS, method_of, only_on, ordered
from lorafit.model.adapters.lora import NOT_A_PRODUCT, base_name, lora_layers, realised_scale
from lorafit.model.adapters.quiet import no_advice
from lorafit.model.base import load_config, meta_model
from lorafit.model.trained import AdapterSource
from lorafit.run_dir import write_json

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?")
_MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.weight)?")
THIN = ("lora", "paca")  # methods whose ΔW is a product of two thin matrices


@dataclass(frozen=True)
class LoraLayer:
    """One adapted weight: its name in the base, and what is added to it.

    module: its name in the adapter's file. parameter: of fused experts, the name of their weight.
    magnitude: DoRA's, (O,). dtype: that the factors are stored in.
    """

    module: str
    factors: Factors
    scale: float
    embedding: bool = False
    parameter: str = ""
    magnitude: torch.Tensor | None = None
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        """As rank_pattern and alpha_pattern know it."""
        module = self.module.replace(".base_layer", "")
        return f"{module}.{self.parameter}" if self.parameter else module

    @property
    def weight_name(self) -> str:
        """The tensor of the base."""
        return self.name if self.parameter else f"{self.name}.weight"


@dataclass(frozen=True)
class LoraAdapter:
    """Everything in an adapter's directory.

    others: tensors that belong to no layer's A and B, by their names in the file, with the scale
    included in what it applies to (the bias of B).
    """

    config: dict[str, Any]
    layers: dict[str, LoraLayer]
    others: dict[str, torch.Tensor]


def refuse_other_than_lora(source: AdapterSource, what: str) -> None:
    """UserError unless each layer's update is scale·B·A. `what` is what cannot be done.

    PaCA's is: its A picks columns.
    """
    method = method_of(source.config)
    if method not in THIN:
        raise UserError(
            f"{method} cannot be {what}: only LoRA's update is a product of two factors",
            str(source.directory), "merge it instead (lorafit merge), or train with method: lora")
    for key in NOT_A_PRODUCT:
        if source.config.get(key):
            raise UserError(f"an adapter with {key} cannot be {what}: its update is not B·A",
                            str(source.directory), "merge it instead: lorafit merge")
    if stored := only_on(source.directory):
        raise UserError(
            f"is valid on the base in {stored} only, because it makes up for what {stored} loses "
            f"(LoftQ), and cannot be {what}", str(source.directory),
            "export it (lorafit export-adapter) and take its full_precision/ folder")


def read_lora(source: AdapterSource) -> LoraAdapter:
    """An adapter's layers as factors; PaCA's as the LoRA that it is.

    UserError when a layer has only one of A and B.
    """
    config, tensors = source.config, load_file(source.directory / WEIGHTS)
    if method_of(config) == "paca":
        tensors, config = paca.as_lora(meta_model(load_config(source.model)), config, tensors)
    fused = _fused_experts(source) if config.get("target_parameters") else {}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    magnitudes, others, embeddings = {}, {}, set()
    for key, tensor in tensors.items():
        if match := _FACTOR.fullmatch(key.removeprefix(_PREFIX)):
            parts.setdefault(match[1], {})[match[3]] = tensor
            if match[2]:
                embeddings.add(match[1])
        else:
            others[key] = tensor
            if match := _MAGNITUDE.fullmatch(key.removeprefix(_PREFIX)):
                magnitudes[match[1]] = tensor
    layers = {}
    for module, part in sorted(parts.items()):
        if part.keys() != {"A", "B"}:
            raise UserError(f"is incomplete: {module} has only one of A and B",
                            str(source.directory), "copy or export the adapter again")
        a, b = part["A"].double(), part["B"].double()
        if module in fused:
            parameter, experts, scale = fused[module]
            a = a.reshape(experts, -1, a.shape[-1])
            b = b.reshape(len(b), -1, experts).permute(2, 0, 1)
        else:
            parameter, scale = "", realised_scale(config, module, len(a))
            a, b = a[None], b[None]
        layer = LoraLayer(module, Factors(a, scale * b), scale, module in embeddings, parameter,
                          magnitudes.get(module), part["A"].dtype)
        layers[layer.name] = layer
        if (bias := f"{_PREFIX}{module}.lora_B.bias") in others:
            others[bias] = scale * others[bias]
    return LoraAdapter(config, layers, others)


def refuse_broken(source: AdapterSource, adapter: LoraAdapter) -> None:
    """UserError when there is nothing to work with: no layers, or values that are not finite."""
    if not adapter.layers:
        raise UserError("has no A and B", str(source.directory), "name a LoRA adapter")
    for layer in adapter.layers.values():
        if not (torch.isfinite(layer.factors.a).all() and torch.isfinite(layer.factors.b).all()):
            raise UserError(f"{layer.name} holds values that are not finite",
                            str(source.directory), "take an earlier checkpoint of the run")


def _fused_experts(source: AdapterSource) -> dict[str, tuple[str, int, float]]:
    """For each adapter on fused experts, by its name in the file: the weight, the number of
    experts and the scale, which the file does not tell. Asked of peft on a model of shapes."""
    from peft import PeftConfig, get_peft_model

    config = PeftConfig.from_pretrained(str(source.directory))
    config.init_lora_weights = True  # starts that look at the base need weights
    with no_advice():
        adapted = get_peft_model(meta_model(load_config(source.model)), config)
    return {
        base_name(name): (layer.parameter_name, layer.num_experts, layer.scaling["default"])
        for name, layer in lora_layers(adapted) if hasattr(layer, "parameter_name")
    }


def write_lora(directory: Path, adapter: LoraAdapter) -> None:
    """Write an adapter whose every layer has scale 1, so alpha = rank in whatever reads it.

    A reader that knows neither rank_pattern nor alpha_pattern computes the same: alpha / r is 1.
    Equal adapters give equal bytes.
    """
    ranks = {layer.name: layer.factors.rank for layer in adapter.layers.values()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {name: rank for name, rank in ranks.items() if rank != usual}
    config = adapter.config | {
        "r": usual, "lora_alpha": usual, "use_rslora": False, "init_lora_weights": True,
        "rank_pattern": pattern, "alpha_pattern": dict(pattern), "inference_mode": True,
    }
    tensors = dict(adapter.others)
    for layer in adapter.layers.values():
        a, b = layer.factors.a, layer.factors.b
        start = f"{_PREFIX}{layer.module}.lora_{'embedding_' if layer.embedding else ''}"
        end = "" if layer.embedding else ".weight"
        tensors[f"{start}A{end}"] = a.flatten(0, 1).to(layer.dtype).contiguous()
        tensors[f"{start}B{end}"] = b.permute(1, 2, 0).flatten(1).to(layer.dtype).contiguous()
    save_file({name: tensors[name] for name in sorted(tensors)}, directory / WEIGHTS,
              metadata={"format": "pt"})
    write_json(directory / CONFIG, ordered(config))


def with_factors(layer: LoraLayer, factors: Factors) -> LoraLayer:
    """The layer with another update, at scale 1."""
    return replace(layer, factors=factors, scale=1.0)
