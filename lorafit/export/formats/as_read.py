"""The check of a format: what a program reads, computed by plain peft, beside what was trained."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lorafit.errors import VerificationError
from lorafit.export.verify import Agreement, compare, using
from lorafit.model.adapters.files import CONFIG, WEIGHTS, load_adapter, ordered
from lorafit.model.base import load_base
from lorafit.model.trained import AdapterSource
from lorafit.run_dir import write_json


@dataclass(frozen=True)
class AsRead:
    """A layer as a program has it in memory: A (rank, in), B (out, rank), DoRA's magnitude (out,).
    """

    a: Tensor
    b: Tensor
    embedding: bool = False
    magnitude: Tensor | None = None


def put_on(model: Any, layers: Mapping[str, AsRead], alpha: float) -> Any:
    """A base in memory + alpha/rank·B·A of layers, by their names in it. All have one rank."""
    with tempfile.TemporaryDirectory(prefix="lorafit-") as name:
        _write(Path(name), layers, alpha)
        return load_adapter(model, Path(name))


def compare_as_read(source: AdapterSource, load: Callable[[Any, Path], Any],
                    folder: Path) -> Agreement:
    """Logits of base + trained adapter against those of what a program reads in `folder` (`load`,
    as in Format), in float32."""
    rows = source.rows()

    def base() -> object:
        return load_base(source.model, "float32", "eager", torch.device("cpu"))

    return compare(using(lambda: load_adapter(base(), source.directory), rows),
                   using(lambda: load(base(), folder), rows))


def unreadable(folder: Path, what: str) -> VerificationError:
    """Files that a program would refuse, or read otherwise than they are meant."""
    return VerificationError(f"{folder}: {what}; it was not kept\n    this is a bug worth "
                             "reporting")


def _write(folder: Path, layers: Mapping[str, AsRead], alpha: float) -> None:
    """As peft reads it: every layer by its full name, nothing left to patterns."""
    from peft import LoraConfig

    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        kind, end = ("lora_embedding_", "") if layer.embedding else ("lora_", ".weight")
        tensors[f"base_model.model.{name}.{kind}A{end}"] = layer.a.contiguous()
        tensors[f"base_model.model.{name}.{kind}B{end}"] = layer.b.contiguous()
        if layer.magnitude is not None:
            tensors[f"base_model.model.{name}.lora_magnitude_vector"] = layer.magnitude
    first = next(iter(layers.values()))
    config = LoraConfig(
        task_type="CAUSAL_LM", r=len(first.a), lora_alpha=alpha,
        target_modules=sorted(layers), use_dora=first.magnitude is not None, inference_mode=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, ordered(config.to_dict()))
