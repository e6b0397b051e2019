"""What vLLM and SGLang have in common: peft's file, read by fewer rules than peft reads it by.

Both take the directory of a peft adapter and read r, lora_alpha and target_modules of its
configuration. What else they heed depends on the version, so what is written needs nothing else:
one rank, alpha / rank as the scale, every adapted layer by a name that means it alone.
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lorafit.export.formats.one_rank import OneRank, Pair
from lorafit.model.adapters.files import CONFIG, WEIGHTS, method_of, ordered
from lorafit.model.base import load_config, meta_model, resolve_base
from lorafit.model.inventory import module_words
from lorafit.model.trained import AdapterSource
from lorafit.run_dir import write_json

_PREFIX = "base_model.model."


def served_name(source: AdapterSource) -> str:
    """A name to ask a server for the adapter by: that of its run or directory."""
    path = source.run.path if source.run is not None else source.directory
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().name) or "adapter"


def served_base(source: AdapterSource) -> str:
    """The base as a word of a command line."""
    return shlex.quote(resolve_base(source.model.base))


def write_for_servers(source: AdapterSource, folder: Path, adapter: OneRank) -> None:
    """Weights and configuration. Equal adapters give equal bytes."""
    tensors: dict[str, torch.Tensor] = {}
    for name, pair in adapter.layers.items():
        kind, end = ("lora_embedding_", "") if pair.embedding else ("lora_", ".weight")
        tensors[f"{_PREFIX}{name}.{kind}A{end}"] = pair.a
        tensors[f"{_PREFIX}{name}.{kind}B{end}"] = pair.b
    save_file({name: tensors[name] for name in sorted(tensors)}, folder / WEIGHTS,
              metadata={"format": "pt"})
    write_json(folder / CONFIG, ordered(_config(source, adapter)))


def _config(source: AdapterSource, adapter: OneRank) -> dict[str, Any]:
    """What plain LoRA at one rank has to say, and no key that a server could take for more."""
    model = meta_model(load_config(source.model), trust_remote_code=source.model.trust_remote_code)
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True,
        "base_model_name_or_path": source.config.get("base_model_name_or_path"),
        "revision": source.config.get("revision"),
        "r": adapter.rank, "lora_alpha": adapter.alpha, "lora_dropout": 0.0,
        "target_modules": module_words(model, sorted(adapter.layers)),
        "bias": "none", "modules_to_save": None, "use_rslora": False, "use_dora": False,
        "init_lora_weights": True, "fan_in_fan_out": False, "rank_pattern": {}, "alpha_pattern": {},
    }


def what_was_done(source: AdapterSource, adapter: OneRank, scale: str = "lora_alpha / r") -> str:
    """For the command's output: how the file differs from the one that was trained.

    scale: where the format has it.
    """
    config, done = source.config, []
    if method_of(config) == "paca":
        done.append("the columns of PaCA as A and B of LoRA")
    if adapter.changed:
        done.append(adapter.changed)
    if config.get("use_rslora") and "scales" not in adapter.changed:
        done.append(f"rsLoRA's scale {adapter.scale:.4g} as {scale}")
    return "; ".join(done)


def is_converted(source: AdapterSource, adapter: OneRank) -> bool:
    return bool(adapter.changed) or method_of(source.config) == "paca"


def zeros_like(pair: Pair, out: int) -> Pair:
    """An update of nothing for a layer of the same inputs and `out` outputs."""
    return Pair(torch.zeros_like(pair.a), pair.b.new_zeros(out, pair.b.shape[1]))


def layers_by_block(names: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of layers under the module that holds them: `model.layers.0.mlp` → its projections."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        parent, _, last = name.rpartition(".")
        blocks.setdefault(parent, []).append(last)
    return blocks
