"""mlx-lm's form: adapters.safetensors and adapter_config.json as its own training writes them.

Its rules, from mlx_lm/tuner/{utils,lora,dora}.py:

- a layer computes W·x + scale·((x·lora_a)·lora_b) with lora_a (in, rank) and lora_b (rank, out);
  an embedding W[x] + scale·(lora_a[x]·lora_b) with lora_a (vocabulary, rank);
- DoRA multiplies by m / ‖W + scale·(lora_a·lora_b)ᵀ‖, m (out,); either all layers have it or none;
- rank and scale stand once in the configuration;
- `keys` are names within a decoder layer, applied to the last num_layers of them, or full names;
- a layer that is named and has no tensors starts from lora_b = 0, so it stays the base's;
- where embeddings and output head are one weight, one layer computes both.

A name that mlx-lm does not have is refused by it since 0.32 and ignored before, so only
architectures whose names are known to be the same are written.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lorafit.errors import Problem
from lorafit.export.delta.files import read_lora
from lorafit.export.formats.as_read import AsRead, compare_as_read, put_on, unreadable
from lorafit.export.formats.format import Format, Written
from lorafit.export.formats.lora_only import (
    Holds,
    called,
    mixture_or_turned,
    reasons_against,
    shares_its_weight,
    way_out,
)
from lorafit.export.formats.one_rank import OneRank, at_one_rank
from lorafit.export.formats.servers import served_base, what_was_done
from lorafit.export.verify import Agreement
from lorafit.model.base import load_config, meta_model, resolve_base
from lorafit.model.inventory import decoder_layers
from lorafit.model.trained import AdapterSource
from lorafit.model.weights import Weight
from lorafit.run_dir import write_json

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"

# Architectures whose linear layers and embeddings have the same names and shapes in mlx-lm 0.32 as
# in transformers 5.23: compared by building each in both. Of mixtures that is attention, which is
# all that is written of them.
SAME_NAMES = (
    "cohere", "gemma", "gemma2", "gemma3_text", "glm4", "granite", "llama", "mistral", "mixtral",
    "olmo2", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2",
)


def _refused_part(model: Any, weight: Weight) -> str:
    if shares_its_weight(model, weight):
        return (f"an adapter on {called(weight)} changes embeddings and output head alike in "
                "mlx-lm, where they are one weight")
    return mixture_or_turned("mlx-lm", weight, model)


def _refuse(source: AdapterSource) -> list[Problem]:
    problems = reasons_against(source, Holds("mlx-lm", dora=True, refused_part=_refused_part))
    kind = load_config(source.model).model_type
    if kind not in SAME_NAMES:
        problems.append(Problem(
            f"the names of mlx-lm's layers are not known for {kind}; they are for "
            f"{', '.join(SAME_NAMES)}", str(source.directory), way_out(source)))
    if source.config.get("use_dora") and not problems and (
            names := [name for name, layer in read_lora(source).layers.items() if layer.embedding]):
        problems.append(Problem(f"DoRA on embeddings is not written for mlx-lm ({names[0]})",
                                str(source.directory), way_out(source)))
    return problems


def _write(source: AdapterSource, folder: Path) -> Written:
    adapter = at_one_rank(read_lora(source))
    tensors: dict[str, torch.Tensor] = {}
    for name, pair in adapter.layers.items():
        tensors[f"{name}.lora_a"] = pair.a.T.contiguous()
        tensors[f"{name}.lora_b"] = pair.b.T.contiguous()
        if pair.magnitude is not None:
            tensors[f"{name}.m"] = pair.magnitude.contiguous()
    save_file({name: tensors[name] for name in sorted(tensors)}, folder / WEIGHTS,
              metadata={"format": "mlx"})
    keys, num_layers = _places(_model(source), adapter)
    write_json(folder / CONFIG, {
        "model": resolve_base(source.model.base),
        "fine_tune_type": "dora" if source.config.get("use_dora") else "lora",
        "num_layers": num_layers,
        "lora_parameters": {"rank": adapter.rank, "scale": adapter.scale, "dropout": 0.0,
                            "keys": keys},
    })
    return Written(
        True, "; ".join(filter(None, ["A and B as (in, rank) and (rank, out)",
                                      what_was_done(source, adapter, "scale")])),
        f"mlx_lm.generate --model {served_base(source)} --adapter-path {{folder}} --prompt '…'")


def _places(model: Any, adapter: OneRank) -> tuple[list[str], int]:
    """`keys`, and from the how many last decoder layers on they are meant."""
    start, count = _blocks(model)
    keys, lowest = set(), count - 1  # 0 layers would mean all of them
    for name in adapter.layers:
        if name.startswith(start):
            number, _, key = name.removeprefix(start).partition(".")
            lowest = min(lowest, int(number))
            keys.add(key)
        else:
            keys.add(name)
    return sorted(keys), count - lowest


def _blocks(model: Any) -> tuple[str, int]:
    """What the names of decoder layers begin with (`model.layers.`), and how many there are."""
    blocks = decoder_layers(model)
    name = next(name for name, module in model.named_modules() if module is blocks)
    return f"{name}.", len(blocks)


def _model(source: AdapterSource) -> Any:
    return meta_model(load_config(source.model), trust_remote_code=source.model.trust_remote_code)


def _check(source: AdapterSource, folder: Path) -> tuple[Agreement, str]:
    return compare_as_read(source, _load, folder), "mlx-lm's rules"


def _owns(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def _load(model: Any, folder: Path) -> Any:
    """Layers are made from the configuration alone, as mlx-lm makes them; then filled."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    parameters, tensors = config["lora_parameters"], load_file(folder / WEIGHTS)
    modules = dict(model.named_modules())
    made = _made(modules, config["num_layers"], parameters["keys"])
    is_dora = config["fine_tune_type"] == "dora"
    layers = {}
    for key in tensors:
        name, _, leaf = key.rpartition(".")
        if name not in made or leaf not in ("lora_a", "lora_b", "m") or (leaf == "m") > is_dora:
            raise unreadable(folder, f"mlx-lm does not load {key}")
    for name in {key.rpartition(".")[0] for key in tensors}:
        rows, columns = modules[name].weight.shape
        is_embedding = isinstance(modules[name], torch.nn.Embedding)
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        ends = (rows, columns) if is_embedding else (columns, rows)
        if a.shape != (ends[0], parameters["rank"]) or b.shape != (parameters["rank"], ends[1]):
            raise unreadable(folder, f"mlx-lm does not load {name}")
        magnitude = tensors[f"{name}.m"] if is_dora else None
        layers[name] = AsRead(a.T, b.T, is_embedding, magnitude)
    return put_on(model, layers, parameters["scale"] * parameters["rank"])


def _made(modules: Mapping[str, torch.nn.Module], num_layers: int, keys: list[str]) -> set[str]:
    """Names of the layers that mlx-lm gives A and B."""
    held: dict[str, set[int]] = {}
    for name in modules:
        before, _, number = name.rpartition(".")
        if number.isdigit():
            held.setdefault(before, set()).add(int(number))
    stack, numbers = max(held.items(), key=lambda item: len(item[1]))
    chosen = sorted(numbers)[-num_layers:]
    return {name for name in modules
            if name in keys or any(name == f"{stack}.{number}.{key}"
                                   for number in chosen for key in keys)}


MLX = Format("mlx", "mlx-lm", _refuse, _write, _check, owns=_owns, load=_load,
             library="mlx")
