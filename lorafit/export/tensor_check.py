"""The check of a merge without a model: every tensor that was written, computed again.

Comparing logits needs base and merged model in memory in float32. Here a block of rows of one
tensor is in memory at a time: merged files are read by the safetensors library, which did not write
them; W + ΔW is computed in float64 from the adapter's factors (export/delta/files.py), which the
merge does not use. What it cannot see is a tensor that the model reads otherwise than its name
says.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lorafit.errors import VerificationError
from lorafit.export.delta.files import THIN, LoraLayer, read_lora
from lorafit.export.merge_plan import MergePlan
from lorafit.model.adapters.files import method_of
from lorafit.model.trained import AdapterSource
from lorafit.model.weight_files import weight_shards

AUTO, LOGITS, TENSORS = "auto", "logits", "tensors"
_BLOCK_NUMBERS = 1 << 22  # of a tensor that are looked at together: 32 MiB in float64


@dataclass(frozen=True)
class TensorsAgree:
    """Tensors by what became of them, and ‖merged − (W + ΔW)‖ / ‖W + ΔW‖ of the worst."""

    updated: int
    replaced: int
    unchanged: int
    largest_relative: float


def check_tensors(source: AdapterSource, base: Path, merged: Path, plan: MergePlan,
                  output: Path) -> TensorsAgree:
    """Compare the files of a merged model with base and adapter. VerificationError with the name of
    the first tensor that is not what it should be. `output` is what messages call the model."""
    layers = {layer.weight_name: layer for layer in read_lora(source).layers.values()} \
        if method_of(source.config) in THIN else {}
    before, after = weight_shards(base), weight_shards(merged)
    replaced = plan.replacements | {name: tensor for name, tensor in plan.added.items()
                                    if name not in layers}
    if missing := (before.keys() | layers.keys() | replaced.keys()) - after.keys():
        raise _differs(output, f"{min(missing)} is not in it")
    counts = {"updated": 0, "replaced": 0, "unchanged": 0}
    largest = 0.0
    for name, file in after.items():
        with safe_open(file, "pt") as reader:
            written = reader.get_slice(name)
            if name in layers:
                relative = _error(written, *_original(before, name), layers[name],
                                  bool(source.config.get("fan_in_fan_out")))
                if not relative <= torch.finfo(written[:1].dtype).eps:
                    raise _differs(output, f"{name} is off by {relative:.1e} of its norm")
                largest = max(largest, relative)
                counts["updated"] += 1
            elif name in replaced:
                found = reader.get_tensor(name)
                if not torch.equal(found, replaced[name].to(found.dtype)):
                    raise _differs(output, f"{name} is not the adapter's")
                counts["replaced"] += 1
            elif not _same(written, before, name):
                raise _differs(output, f"{name} is not the base's")
            else:
                counts["unchanged"] += 1
    return TensorsAgree(**counts, largest_relative=largest)


def _original(shards: dict[str, Path], name: str) -> tuple[Path, str]:
    """Where W is: an output head that was one weight with the embeddings has theirs."""
    if name in shards:
        return shards[name], name
    embedding = next(key for key in shards if key.endswith("embed_tokens.weight"))
    return shards[embedding], embedding


def _error(written: Any, file: Path, name: str, layer: LoraLayer, turned: bool) -> float:
    """‖merged − expected‖ / ‖expected‖ of one tensor, by blocks of rows."""
    shape = tuple(written.get_shape())
    a, b = layer.factors.a[0], layer.factors.b[0]  # (R, I) and (O, R), the scale in b
    own = (len(b), a.shape[1])
    is_turned = layer.embedding or (shape == own[::-1] and (turned or shape != own))
    if is_turned:
        a, b = b.T, a.T
    whole = is_turned and layer.magnitude is not None  # whose norms are of columns
    rows = shape[0] if whole else max(1, _BLOCK_NUMBERS // shape[1])
    off = norm = 0.0
    with safe_open(file, "pt") as reader:
        weight = reader.get_slice(name)
        for start in range(0, shape[0], rows):
            end = min(shape[0], start + rows)
            expected = weight[start:end].double() + b[start:end] @ a
            if layer.magnitude is not None:
                magnitude = layer.magnitude.double().flatten()
                if is_turned:
                    expected = magnitude * expected / expected.norm(dim=0)
                else:
                    expected *= magnitude[start:end, None] / expected.norm(dim=1, keepdim=True)
            off += float((written[start:end].double() - expected).square().sum())
            norm += float(expected.square().sum())
    return float((off / max(norm, 1e-300)) ** 0.5)


def _same(written: Any, shards: dict[str, Path], name: str) -> bool:
    shape = tuple(written.get_shape())
    with safe_open(shards[name], "pt") as reader:
        original = reader.get_slice(name)
        if tuple(original.get_shape()) != shape:
            return False
        if not shape:
            return torch.equal(_whole(written), _whole(original).to(_whole(written).dtype))
        rows = max(1, _BLOCK_NUMBERS // max(1, shape[-1]))
        for start in range(0, shape[0], rows):
            found: Tensor = written[start:start + rows]
            if not torch.equal(found, original[start:start + rows].to(found.dtype)):
                return False
    return True


def _whole(part: Any) -> Tensor:
    tensor: Tensor = part[...]
    return tensor


def _differs(output: Path, what: str) -> VerificationError:
    return VerificationError(f"{output}: the merged model is not base + adapter: {what}; it was "
                             "not kept\n    this is a bug worth reporting")
