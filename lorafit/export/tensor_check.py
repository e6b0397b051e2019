"""The check of a merge without a model: every tensor that was written, computed again.

Comparing logits needs base and merged model in memory in float32. Here a block of rows of one
tensor is in memory at a time: the files are read again, and W + ΔW is computed in float64 from the
adapter's factors (export/delta/files.py), which the merge does not use. What it cannot see is a
tensor that the model reads otherwise than its name says.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from lorafit.errors import VerificationError
from lorafit.export.delta.files import THIN, LoraLayer, read_lora
from lorafit.export.merge_plan import MergePlan
from lorafit.export.tensor_files import Stored, row_blocks, stored_in
from lorafit.model.adapters.files import method_of
from lorafit.model.trained import AdapterSource

AUTO, LOGITS, TENSORS = "auto", "logits", "tensors"


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
    before, after = stored_in(base), stored_in(merged)
    replaced = plan.replacements | {name: tensor for name, tensor in plan.added.items()
                                    if name not in layers}
    if missing := (before.keys() | layers.keys() | replaced.keys()) - after.keys():
        raise _differs(output, f"{min(missing)} is not in it")
    counts = {"updated": 0, "replaced": 0, "unchanged": 0}
    largest = 0.0
    for name, written in after.items():
        if name in layers:
            relative = _error(written, _original(before, name), layers[name],
                              bool(source.config.get("fan_in_fan_out")))
            if not relative <= torch.finfo(written.dtype).eps:
                raise _differs(output, f"{name} is off by {relative:.1e} of its norm")
            largest = max(largest, relative)
            counts["updated"] += 1
        elif name in replaced:
            if not torch.equal(written.read(), replaced[name].to(written.dtype)):
                raise _differs(output, f"{name} is not the adapter's")
            counts["replaced"] += 1
        elif not _same(written, before[name]):
            raise _differs(output, f"{name} is not the base's")
        else:
            counts["unchanged"] += 1
    return TensorsAgree(**counts, largest_relative=largest)


def _original(stored: dict[str, Stored], name: str) -> Stored:
    """Where W is: an output head that was one weight with the embeddings has theirs."""
    return stored.get(name) or next(tensor for key, tensor in stored.items()
                                    if key.endswith("embed_tokens.weight"))


def _error(written: Stored, original: Stored, layer: LoraLayer, turned: bool) -> float:
    """‖merged − expected‖ / ‖expected‖ of one tensor, by blocks of rows."""
    a, b = layer.factors.a[0], layer.factors.b[0]  # (R, I) and (O, R), the scale in b
    own, shape = (len(b), a.shape[1]), written.shape
    is_turned = layer.embedding or (shape == own[::-1] and (turned or shape != own))
    if is_turned:
        a, b = b.T, a.T
    whole = is_turned and layer.magnitude is not None  # whose norms are of columns
    off = norm = 0.0
    for start, count in row_blocks(shape, shape[0] if whole else 0):
        expected = original.read(start, count).double() + b[start:start + count] @ a
        if layer.magnitude is not None:
            magnitude = layer.magnitude.double().flatten()
            if is_turned:
                expected = magnitude * expected / expected.norm(dim=0)
            else:
                expected *= (magnitude[start:start + count, None]
                             / expected.norm(dim=1, keepdim=True))
        off += float((written.read(start, count).double() - expected).square().sum())
        norm += float(expected.square().sum())
    return float((off / max(norm, 1e-300)) ** 0.5)


def _same(written: Stored, original: Stored) -> bool:
    if written.shape != original.shape:
        return False
    if not written.shape:
        return torch.equal(written.read(), original.read().to(written.dtype))
    return all(torch.equal(written.read(start, count),
                           original.read(start, count).to(written.dtype))
               for start, count in row_blocks(written.shape))


def _differs(output: Path, what: str) -> VerificationError:
    return VerificationError(f"{output}: the merged model is not base + adapter: {what}; it was "
                             "not kept\n    this is a bug worth reporting")
