"""A GGUF read back as llama.cpp understands it, as weights that transformers and peft take.

The way back is written apart from the way there, so that a mistake in one does not hide in both.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorafit.errors import UserError, VerificationError
from lorafit.export.gguf.architectures import Architecture, architecture_of
from lorafit.export.gguf.convert import name_map
from lorafit.export.gguf.library import gguf_library
from lorafit.export.gguf.weights import file_name, halves, rotated_heads
from lorafit.model.base import meta_model


@dataclass(frozen=True)
class Pair:
    """One adapted weight as llama.cpp applies it: ΔW = scale · b·a, rows in transformers' order.

    a: (r, in), b: (out, r); for an embedding a: (r, rows of the table), b: (width, r).
    """

    module: str
    a: torch.Tensor
    b: torch.Tensor
    scale: float
    embedding: bool


def coarsest_type(file: Path) -> str:
    """float32, float16, bfloat16 or q8_0: the coarsest in which a file stores weights."""
    gguf = gguf_library()
    kinds = gguf.GGMLQuantizationType
    order = {kinds.F32: "float32", kinds.F16: "float16", kinds.BF16: "bfloat16",
             kinds.Q8_0: "q8_0"}
    try:
        found = {tensor.tensor_type for tensor in gguf.GGUFReader(file).tensors}
    except Exception as error:  # whatever the reader meets in a damaged file
        raise UserError(f"is damaged, or no GGUF: {str(error) or type(error).__name__}", str(file),
                        "copy it again") from None
    if not found:
        raise UserError("holds no weights", str(file), "export it again")
    if other := found - order.keys():
        raise UserError(f"stores weights as {min(other).name}, which is not read here", str(file),
                        f"verify one in {', '.join(order.values())}")
    return next(order[kind] for kind in reversed(order) if kind in found)


def read_file(file: Path, config: Any) -> Any:
    """The model of a GGUF whose base has this configuration, in float32."""
    gguf = gguf_library()
    config = copy.deepcopy(config)
    is_tied = all(tensor.name != "output.weight" for tensor in gguf.GGUFReader(file).tensors)
    for section in (config, config.get_text_config()):
        section.tie_word_embeddings = is_tied
    return read_model(gguf, file, architecture_of(config, str(file)), config)


def read_model(gguf: Any, file: Path, architecture: Architecture, config: Any) -> Any:
    """The model of a GGUF, in float32. VerificationError when weights are missing or left over."""
    from transformers import AutoModelForCausalLM

    text = config.get_text_config()
    names = name_map(gguf, architecture, config)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    state = {}
    for name, parameter in model.state_dict().items():
        stored = tensors.get(file_name(names, name) or "")
        if stored is None:
            continue
        weight = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type).copy())
        if architecture.norm_plus_one and name.endswith("norm.weight"):
            weight -= 1
        heads = rotated_heads(architecture, text, name.rpartition(".")[0])
        state[name] = (halves(weight, heads) if heads else weight).reshape(parameter.shape)
    missing, _ = model.load_state_dict(state, strict=False)
    tied = {"lm_head.weight"} if text.tie_word_embeddings else set()
    if gone := [name for name in missing if name not in tied
                and not name.startswith(("model.vision_tower", "model.multi_modal_projector"))]:
        raise VerificationError(f"{file}: has no {gone[0]}; this is a bug worth reporting")
    model.tie_weights()
    return model


def read_adapter(gguf: Any, file: Path, architecture: Architecture, config: Any) -> Iterator[Pair]:
    """The pairs of an adapter's file. VerificationError for what llama.cpp would not load."""
    reader = gguf.GGUFReader(file)
    said = {name: field.contents() for name, field in reader.fields.items()}
    for key, value in (("general.type", "adapter"), ("adapter.type", "lora"),
                       ("general.architecture", architecture.name)):
        if said.get(key) != value:
            raise VerificationError(f"{file}: {key} is {said.get(key)!r}, not {value!r}")
    alpha = float(said["adapter.lora.alpha"])
    names = name_map(gguf, architecture, config)
    modules = {file_name(names, name): name.removesuffix(".weight")
               for name, _ in meta_model(config).named_parameters() if name.endswith(".weight")}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for tensor in reader.tensors:
        weight, _, half = tensor.name.rpartition(".lora_")
        parts.setdefault(weight, {})[half] = torch.from_numpy(tensor.data.copy()).float()
    text = config.get_text_config()
    for weight, part in parts.items():
        if part.keys() != {"a", "b"} or weight not in modules:
            raise VerificationError(f"{file}: {weight} is no pair of a weight of the base")
        module, a, b = modules[weight], part["a"], part["b"]
        scale = alpha / b.shape[1] if alpha else 1.0
        if weight == "token_embd.weight":
            yield Pair(module, a.T.contiguous(), b, scale, embedding=True)
            continue
        heads = rotated_heads(architecture, text, module)
        yield Pair(module, a, halves(b, heads) if heads else b, scale, embedding=False)
