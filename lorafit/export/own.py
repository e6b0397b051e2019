"""What lorafit's own methods make of the base's weights, and of other formats."""

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lorafit.model.adapters import paca
from lorafit.model.adapters.files import CONFIG, WEIGHTS, ordered
from lorafit.model.base import load_config, meta_model
from lorafit.model.trained import AdapterSource
from lorafit.run_dir import write_json


@dataclass(frozen=True)
class ColumnUpdate:
    """PaCA's change of one weight: `change` (out, r) added to the input `columns` (r,).

    transposed: the weight is stored as (in, out).
    """

    columns: torch.Tensor
    change: torch.Tensor
    transposed: bool

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """The merged weight in float32."""
        merged = weight.to(torch.float32, copy=True)
        if self.transposed:
            return merged.index_add_(0, self.columns, self.change.T)
        return merged.index_add_(1, self.columns, self.change)


def column_updates(source: AdapterSource) -> dict[str, ColumnUpdate]:
    """A PaCA adapter's changes by the names of the weights."""
    tensors = load_file(source.directory / WEIGHTS)
    return {
        f"{name}.weight": ColumnUpdate(tensors[f"{name}.columns"], tensors[f"{name}.change"],
                                       name in source.config["transposed"])
        for name in source.config["modules"]
    }


def trained_weights(source: AdapterSource, stored: Container[str]) -> dict[str, torch.Tensor]:
    """The weights of full fine-tuning by the names that the base's files have for them.

    A weight that several modules share goes under those of its names that are stored, or under
    its first where none is.
    """
    weights = load_file(source.directory / WEIGHTS)
    names: dict[str, list[str]] = {name: [name] for name in weights}
    for other, name in source.config["shared"].items():
        names[name].append(other)
    return {key: weights[name].clone() if len(called) > 1 else weights[name]
            for name, called in names.items()
            for key in [key for key in called if key in stored] or [name]}


def write_as_lora(source: AdapterSource, directory: Path) -> None:
    """Write a PaCA adapter as the LoRA adapter that it is."""
    config = load_config(source.model)
    model = meta_model(config, trust_remote_code=source.model.trust_remote_code)
    tensors, values = paca.as_lora(model, source.config, load_file(source.directory / WEIGHTS))
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    write_json(directory / CONFIG, ordered(values))
