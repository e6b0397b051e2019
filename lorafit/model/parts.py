"""Tensors that are cut up among processes, seen from one of them."""

from typing import Any

from torch import Tensor


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory; the tensor itself if it is whole."""
    to_local: Any = getattr(tensor, "to_local", None)
    part: Tensor = tensor if to_local is None else to_local()
    return part
