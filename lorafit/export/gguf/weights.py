"""Weights by the names and in the forms in which llama.cpp reads them."""

import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lorafit.errors import UserError
from lorafit.export.gguf.architectures import Architecture

_LARGEST_F16 = 65504.0
# Parts of a multimodal model beside its language model, and buffers of old files.
_NOT_WRITTEN = re.compile(r"(^|\.)(vision_tower|multi_modal_projector)\.|rotary_emb\.inv_freq$")


def is_written(name: str) -> bool:
    """Whether a tensor of the model's files belongs into the GGUF at all."""
    return _NOT_WRITTEN.search(name) is None


def file_name(names: Any, name: str) -> str | None:
    """A weight's or a module's name in the GGUF; None where llama.cpp has none.

    `names`: gguf's TensorNameMap. A language model inside a larger one goes by its own names.
    """
    plain = name.replace("language_model.", "")
    found: str | None = names.get_name(plain, try_suffixes=(".weight", ".bias"))
    return found


def in_file(architecture: Architecture, text: Any, name: str, weight: torch.Tensor) -> torch.Tensor:
    """The tensor as llama.cpp wants it. `name` is transformers', of a weight or a bias."""
    if architecture.norm_plus_one and name.endswith("norm.weight"):
        return weight.float() + 1
    heads = rotated_heads(architecture, text, name.rpartition(".")[0])
    return neighbours(weight, heads) if heads else weight


def rotated_heads(architecture: Architecture, text: Any, module: str) -> int:
    """How many heads' rows of a module's output are put in another order; 0 for none."""
    if not architecture.neighbours:
        return 0
    kind = module.rpartition(".")[2]
    return {"q_proj": text.num_attention_heads, "k_proj": text.num_key_value_heads}.get(kind, 0)


def neighbours(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows i and i + d/2 of each head side by side. rows: (heads·d, …)."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """`neighbours` undone. rows: (heads·d, …)."""
    size = rows.shape[0] // heads
    order = torch.cat([torch.arange(0, size, 2), torch.arange(1, size, 2)])
    return rows.reshape(heads, size, *rows.shape[1:])[:, order].reshape(rows.shape)


def storage(gguf: Any, kind: str, name: str, shape: tuple[int, ...]) -> Any:
    """How a tensor is stored in a file of `kind`: vectors in f32; where a row does not divide into
    blocks of q8_0, in f16, as llama.cpp does."""
    types = gguf.GGMLQuantizationType
    if len(shape) < 2 or name.endswith("_norm.weight"):
        return types.F32
    wanted = types[kind.upper()]
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else types.F16


def size_bytes(gguf: Any, stored: Any, shape: tuple[int, ...]) -> int:
    block, block_bytes = gguf.GGML_QUANT_SIZES[stored]
    return int(np.prod(shape)) // int(block) * int(block_bytes)


def packed(gguf: Any, stored: Any, name: str, weight: torch.Tensor) -> NDArray[Any]:
    """The bytes of a tensor, as an array. UserError where f16 cannot hold it."""
    if weight.dtype == torch.bfloat16 and stored == gguf.GGMLQuantizationType.BF16:
        return weight.contiguous().view(torch.uint8).numpy()
    values = weight.float().contiguous()
    if stored == gguf.GGMLQuantizationType.F16 and values.abs().max() > _LARGEST_F16:
        raise UserError(f"{name} holds values up to {float(values.abs().max()):.3g}, more than "
                        "f16 can", "--gguf-type f16", "use --gguf-type bf16 or f32")
    array: NDArray[Any] = gguf.quants.quantize(values.numpy(), stored)
    return array
