"""A model directory as one GGUF file: planned from headers, then written tensor by tensor.

Memory stays near one tensor, whatever the size of the model.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lorafit.errors import UserError
from lorafit.export.gguf.architectures import Architecture, architecture_of, remarks
from lorafit.export.gguf.chat import end_of_turn, plain_template, renderings, stops
from lorafit.export.gguf.hyperparameters import add_hyperparameters, rotation_factors
from lorafit.export.gguf.library import gguf_library
from lorafit.export.gguf.modelfile import modelfile
from lorafit.export.gguf.proof import Tokenised, agree
from lorafit.export.gguf.vocabulary import STRIPPING_NAME, add_vocabulary, read_vocabulary
from lorafit.export.gguf.weights import (
    file_name,
    in_file,
    is_written,
    packed,
    size_bytes,
    storage,
)
from lorafit.model.base import load_config, load_tokenizer
from lorafit.model.weight_files import weight_shards
from lorafit.recipe.schema import Model
from lorafit.run_dir import write_text

WEIGHTS = "model.gguf"
MODELFILE = "Modelfile"
_STORED = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


@dataclass(frozen=True)
class Planned:
    """A tensor of the file. source: its name in the model's files; shape: as stored there."""

    name: str
    source: str
    shape: tuple[int, ...]
    stored: Any


@dataclass(frozen=True)
class Converted:
    """What was written. fallbacks: tensors in f16 because their rows do not divide into blocks."""

    file: Path
    kind: str
    tensors: int
    fallbacks: int
    remarks: list[str]


@dataclass(frozen=True)
class Ready:
    """Everything that is known before a byte is written."""

    folder: Path
    gguf: Any
    architecture: Architecture
    config: Any
    tokenizer: Any
    template: str | None
    tokenised: Tokenised
    tensors: list[Planned]
    kind: str


def convert(folder: Path, output: Path, kind: str | None = None, name: str = "",
            say: Callable[[str], None] = lambda text: None) -> Converted:
    """Write a model directory as `output`/model.gguf with a Modelfile. `output` exists.

    kind: one of library.TYPES, or as the weights are stored. name: what the model is called.
    UserError with the reason where llama.cpp would not compute the model or see its tokens.
    """
    ready = prepare(folder, kind)
    return write(ready, output, name or folder.name, say)


def prepare(folder: Path, kind: str | None = None) -> Ready:
    """Read what there is but the weights, and refuse what cannot be written."""
    gguf = gguf_library()
    section = Model(base=str(folder))
    config = load_config(section)
    architecture = architecture_of(config, str(folder))
    shapes = _shapes(folder)
    kind = kind or _as_stored(shapes)
    tensors = _plan(gguf, architecture, config, shapes, kind, folder)
    rows = next(each.shape[0] for each in tensors if each.name == "token_embd.weight")
    tokenizer = load_tokenizer(section)
    template = plain_template(tokenizer)
    tokenised = agree(tokenizer, read_vocabulary(tokenizer, rows, str(folder)),
                      renderings(tokenizer, template), str(folder))
    return Ready(folder, gguf, architecture, config, tokenizer, template, tokenised, tensors, kind)


def write(ready: Ready, output: Path, name: str, say: Callable[[str], None]) -> Converted:
    gguf, vocabulary = ready.gguf, ready.tokenised.vocabulary
    writer = gguf.GGUFWriter(output / WEIGHTS, ready.architecture.name)
    writer.add_type("model")
    writer.add_name(_safe_name(name, bool(vocabulary.strips_after)))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(_file_type(gguf, ready.kind))
    add_hyperparameters(writer, gguf, ready.architecture, ready.config, len(vocabulary.tokens))
    add_vocabulary(writer, vocabulary)
    closing = end_of_turn(ready.tokenizer, ready.template)
    if closing is not None:
        writer.add_eot_token_id(closing)
    if ready.template is not None:
        writer.add_chat_template(ready.template)
    _write_tensors(writer, ready, say)
    ends = stops(ready.tokenizer, _generation_settings(ready.folder), closing)
    write_text(output / MODELFILE, modelfile(
        WEIGHTS, adapter=None, base=name, tokenizer=ready.tokenizer, template=ready.template,
        stops=ends, adds_bos=vocabulary.adds["bos"]))
    fallbacks = sum(each.stored == gguf.GGMLQuantizationType.F16 for each in ready.tensors
                    ) if ready.kind == "q8_0" else 0
    found = [*remarks(ready.architecture, ready.config), ready.tokenised.remark()]
    return Converted(output / WEIGHTS, ready.kind, len(ready.tensors), fallbacks,
                     [remark for remark in found if remark])


def name_map(gguf: Any, architecture: Architecture, config: Any) -> Any:
    """gguf's table from transformers' names to those in the file."""
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(kinds[architecture.name],
                                    config.get_text_config().num_hidden_layers)


def _plan(gguf: Any, architecture: Architecture, config: Any,
          shapes: dict[str, tuple[tuple[int, ...], str]], kind: str, folder: Path,
          ) -> list[Planned]:
    names = name_map(gguf, architecture, config)
    tied = bool(config.get_text_config().tie_word_embeddings)
    planned = []
    for source, (shape, _) in shapes.items():
        if not is_written(source):
            continue
        name = file_name(names, source)
        if name is None:
            raise UserError(f"{source} has no name in llama.cpp's {architecture.name}",
                            str(folder), "serve the merged model with another engine")
        if not (tied and name == "output.weight"):
            planned.append(Planned(name, source, shape, storage(gguf, kind, name, shape)))
    return planned


def _shapes(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every tensor of a model directory, from the headers."""
    found = {}
    for file in dict.fromkeys(weight_shards(folder).values()):
        with safe_open(file, "pt") as reader:
            for name in reader.keys():
                part = reader.get_slice(name)
                found[name] = (tuple(part.get_shape()), part.get_dtype())
    return found


def _as_stored(shapes: dict[str, tuple[tuple[int, ...], str]]) -> str:
    """The type of the matrices; f32 where they differ."""
    kinds = {dtype for shape, dtype in shapes.values() if len(shape) > 1}
    return _STORED.get(kinds.pop(), "f32") if len(kinds) == 1 else "f32"


def _write_tensors(writer: Any, ready: Ready, say: Callable[[str], None]) -> None:
    gguf, text = ready.gguf, ready.config.get_text_config()
    factors = list(rotation_factors(text, gguf))
    types = gguf.GGMLQuantizationType
    for each in ready.tensors:
        writer.add_tensor_info(each.name, each.shape, _numpy_type(each.stored, types),
                               size_bytes(gguf, each.stored, each.shape), each.stored)
    for name, factor in factors:
        writer.add_tensor_info(name, tuple(factor.shape), factor.numpy().dtype, factor.nbytes,
                               types.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    try:
        for number, (each, weight) in enumerate(_tensors(ready), 1):
            if number % 50 == 0 or number == len(ready.tensors):
                say(f"tensor {number}/{len(ready.tensors)}")
            changed = in_file(ready.architecture, text, each.source, weight)
            writer.write_tensor_data(packed(gguf, each.stored, each.name, changed))
        for _, factor in factors:
            writer.write_tensor_data(factor.numpy())
    finally:
        writer.close()


def _tensors(ready: Ready) -> Iterator[tuple[Planned, torch.Tensor]]:
    """The planned tensors, each shard opened once."""
    shards = weight_shards(ready.folder)
    for file in dict.fromkeys(shards[each.source] for each in ready.tensors):
        with safe_open(file, "pt") as reader:
            for each in ready.tensors:
                if shards[each.source] == file:
                    yield each, reader.get_tensor(each.source)


def _numpy_type(stored: Any, types: Any) -> Any:
    """What the writer wants to hear; it asks only whether shapes count bytes, and they do not."""
    import numpy as np

    return np.dtype(np.float16 if stored == types.F16 else np.float32)


def _file_type(gguf: Any, kind: str) -> Any:
    return gguf.LlamaFileType["ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"]


def _generation_settings(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return settings


def _safe_name(name: str, strips: bool) -> str:
    """llama.cpp strips white space after special tokens where the name holds phi-3 or phi3."""
    is_called_so = any(word in name.lower() for word in (STRIPPING_NAME, "phi3"))
    if strips and not is_called_so:
        return f"{name} ({STRIPPING_NAME} tokenizer)"
    if is_called_so and not strips:
        return name.lower().replace("phi-3", "phi 3").replace("phi3", "phi 3")
    return name
