"""What a base's weights take when they are loaded."""

import math
from typing import Any

from lorafit.model.base import TORCH_DTYPES
from lorafit.model.inventory import weights_of
from lorafit.model.weights import LINEAR

# Bytes of a linear layer's weight: 4-bit formats with a scale for each 64 numbers, scaled again.
_PACKED = {"nf4": 0.516, "fp4": 0.516, "int8": 1.0}
_STORED = 1.0  # of formats that come with a base: between 4 and 8 bits, and scales


def weight_bytes(shapes: Any, quantization: str, dtype: str) -> int:
    """Bytes of all weights of a model (without weights: shapes), in the dtype, linear layers
    quantised."""
    size = TORCH_DTYPES[dtype].itemsize
    total = sum(p.numel() for p in shapes.parameters())
    if quantization == "none":
        return total * size
    packed = sum(math.prod(weight.shape) for weight in weights_of(shapes)
                 if weight.part in LINEAR and not weight.is_parameter)
    return int(packed * _PACKED.get(quantization, _STORED) + (total - packed) * size)
