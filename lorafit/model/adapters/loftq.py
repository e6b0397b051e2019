"""LoftQ (arXiv 2310.08659): A and B start at what the base lost when it was stored in 4 bits.

One step of the paper's alternation: the stored weight Q stays, and s·B·A is the best approximation
of W − Q at the rank. peft's replace_lora_weights_loftq leaves the scale s out of account and needs
a GPU, so the decomposition is done here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lorafit.errors import UserError
from lorafit.model.weight_files import weight_shards


class StoredWeights:
    """The base's full-precision weights, read one at a time from the files it was loaded from."""

    def __init__(self, adapted: Any) -> None:
        self.folder = Path(adapted.config._name_or_path)  # always a directory: local_files.py
        self._shards = weight_shards(self.folder)

    def weight(self, name: str) -> Tensor:
        """A weight by the name of its layer, as it is stored. UserError where there is none."""
        key = f"{name}.weight"
        if key not in self._shards:
            raise UserError(f"the base's files have no tensor {key}, which init loftq starts from",
                            str(self.folder), "use init: default")
        with safe_open(self._shards[key], "pt") as reader:
            tensor: Tensor = reader.get_tensor(key)
        return tensor


def quantisation_error(layer: Any, weights: StoredWeights, name: str) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) with s·B·A ≈ W − Q, float32. A layer that is not stored in 4 bits
    keeps what it has."""
    base = layer.get_base_layer()
    state = getattr(base.weight, "quant_state", None)
    if state is None:
        return layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data
    from bitsandbytes.functional import dequantize_4bit

    stored = dequantize_4bit(base.weight.data, state).float()
    full = weights.weight(name.removeprefix("base_model.model.")).to(stored)
    u, s, vh = torch.linalg.svd(full - stored, full_matrices=False)
    rank = layer.r["default"]
    root = (s[:rank] / layer.scaling["default"]).sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root


def quant_type(adapted: Any) -> str:
    """nf4 or fp4: how the base is stored. UserError when no layer is."""
    return next(_quant_types(adapted))


def _quant_types(adapted: Any) -> Iterator[str]:
    for parameter in adapted.parameters():
        if getattr(parameter, "quant_state", None) is not None:
            yield str(parameter.quant_type)
    raise UserError("no adapted layer is stored in 4 bits", "adapter.init", "use init: default")
