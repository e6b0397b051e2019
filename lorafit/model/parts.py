"""Tensors that are cut up among processes, seen from one of them."""

from typing import Any

from torch import Tensor, nn

from lorafit.model.inventory import found_layers


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory; the tensor itself if it is whole."""
    to_local: Any = getattr(tensor, "to_local", None)
    part: Tensor = tensor if to_local is None else to_local()
    return part


def why_whole(shapes: nn.Module, stored: str | None, quantization: str) -> str | None:
    """Why a base cannot be cut up among processes; None where it can.

    shapes: the model without weights. stored: the format of a base that is quantised in its files.
    """
    if stored is not None:
        return (f"the base is stored as {stored}, whose layers keep what belongs to their weights "
                "beside them")
    if not found_layers(shapes):
        return "its decoder layers, one of which is computed at a time, were not found"
    if quantization != "none" and any(type(m).__name__ == "Conv1D" for m in shapes.modules()):
        return (f"its layers hold weights the other way round, which become {quantization} only as "
                "they are loaded")
    return None
