"""vLLM's form: peft's file, without what vLLM refuses or reads by rules of its own.

Its rules, from vllm/lora/{peft_helper,lora_model,utils,model_manager}.py and vllm/config/lora.py of
0.32, where earlier versions differ those that hold for both:

- the configuration must have r, lora_alpha and target_modules, and may have neither
  modules_to_save, use_dora, lora_bias nor a start that alters the base; the scale of every layer is
  lora_alpha / r, with use_rslora lora_alpha / √r; rank_pattern and alpha_pattern are heeded by 0.32
  and ignored by earlier ones;
- a tensor is …lora_A.weight, …lora_B.weight, …lora_embedding_A or …lora_embedding_B behind the
  name of its layer; another one is refused;
- the last word of a layer's name must be that of a layer of vLLM's model, among which output head
  and embeddings are only where its class lists them (embedding_modules);
- r may not be above --max-lora-rank, which is one of a few numbers;
- a layer without tensors is taken for one that is not adapted.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lorafit.errors import Problem
from lorafit.export.delta.files import read_lora
from lorafit.export.formats.as_read import AsRead, compare_as_read, put_on, unreadable
from lorafit.export.formats.format import Format, Written
from lorafit.export.formats.lora_only import (
    Holds,
    called,
    mixture_or_turned,
    reasons_against,
)
from lorafit.export.formats.one_rank import OneRank, at_one_rank
from lorafit.export.formats.servers import (
    is_converted,
    served_base,
    served_name,
    what_was_done,
    write_for_servers,
)
from lorafit.export.verify import Agreement
from lorafit.model.adapters.lora import VLLM_RANKS
from lorafit.model.base import load_config, meta_model
from lorafit.model.inventory import is_tied, weights_of
from lorafit.model.trained import AdapterSource
from lorafit.model.weights import Weight

# Architectures whose class in vllm/model_executor/models/ of 0.32 lists embed_tokens and lm_head.
_WITH_EMBEDDINGS = ("apertus", "exaone4", "granite", "granitemoe", "lfm2", "llama", "mixtral",
                    "nemotron", "phi3", "qwen3")

_TENSOR = re.compile(
    r"(?:base_model\.model\.)?(.+)\.(?:lora_(A|B)\.weight|lora_embedding_(A|B))")


def _refused_part(model: Any, weight: Weight) -> str:
    kind = model.config.model_type
    if weight.part in ("embeddings", "head") and kind not in _WITH_EMBEDDINGS:
        return f"vLLM refuses adapters on {called(weight)} of {kind}"
    return mixture_or_turned("vLLM", weight, model)


def _refuse(source: AdapterSource) -> list[Problem]:
    return reasons_against(source, Holds("vLLM", dora=False, refused_part=_refused_part))


def _write(source: AdapterSource, folder: Path) -> Written:
    adapter = at_one_rank(read_lora(source))
    write_for_servers(source, folder, adapter)
    limit = next(rank for rank in VLLM_RANKS if rank >= adapter.rank)
    done = [what_was_done(source, adapter)]
    if _on_tied(source, adapter):
        done.append("an adapter on one of two tied weights, embeddings and output head: vLLM 0.32 "
                    "computes it, earlier versions were not tried")
    return Written(
        is_converted(source, adapter), "; ".join(filter(None, done)),
        f"vllm serve {served_base(source)} --enable-lora --max-lora-rank {limit} "
        f"--lora-modules {served_name(source)}={{folder}}")


def _on_tied(source: AdapterSource, adapter: OneRank) -> bool:
    """Whether embeddings or output head have an adapter in a base where the two are one weight."""
    model = meta_model(load_config(source.model), trust_remote_code=source.model.trust_remote_code)
    return is_tied(model) and any(weight.part in ("embeddings", "head")
                                  and weight.name in adapter.layers for weight in weights_of(model))


def _check(source: AdapterSource, folder: Path) -> tuple[Agreement, str]:
    return compare_as_read(source, _load, folder), "vLLM's rules"


def _load(model: Any, folder: Path) -> Any:
    layers, scale = _read(folder)
    return put_on(model, layers, scale * len(next(iter(layers.values())).a))


def _read(folder: Path) -> tuple[dict[str, AsRead], float]:
    """What vLLM has in memory of a folder, and the one scale of all layers."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    rank, alpha = config["r"], config["lora_alpha"]
    if config["use_dora"] or config["modules_to_save"] or not config["target_modules"]:
        raise unreadable(folder, "the configuration is one that vLLM refuses")
    scale = alpha / math.sqrt(rank) if config["use_rslora"] else alpha / rank
    parts: dict[str, dict[str, Any]] = {}
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        for key in file.keys():
            match = _TENSOR.fullmatch(key)
            if match is None:
                raise unreadable(folder, f"vLLM refuses the tensor {key}")
            part = parts.setdefault(match[1], {"embedding": match[3] is not None})
            part[match[2] or match[3]] = file.get_tensor(key)
    layers = {}
    for name, part in parts.items():
        if not {"A", "B"} <= part.keys() or len(part["A"]) != rank:
            raise unreadable(folder, f"{name} has not both of A and B of rank {rank}")
        layers[name] = AsRead(part["A"], part["B"], part["embedding"])
    return layers, scale


VLLM = Format("vllm", "vLLM", _refuse, _write, _check, largest_rank=VLLM_RANKS[-1],
              load=_load)
