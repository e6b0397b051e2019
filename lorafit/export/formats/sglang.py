"""SGLang's form: peft's file, with the layers that SGLang fuses adapted together.

Its rules, from python/sglang/srt/lora/{lora_config,lora,lora_manager,mem_pool,utils}.py of 0.5.23
and of what came after it:

- r, lora_alpha and target_modules of the configuration are read; the scale of every layer is
  lora_alpha / r and every tensor has rank r; use_rslora is ignored, rank_pattern and alpha_pattern
  are ignored or refused, by version; target_modules is a list, of which the last words count;
- q_proj, k_proj and v_proj of a layer are computed as one, gate_proj and up_proj likewise: A and B
  of q and v are looked up where any is adapted, and up alone is not computed, so those that are not
  adapted get zeros;
- a layer whose last word is none of those that it knows is skipped, with a warning;
- there is no limit of the rank but the server's --max-lora-rank;
- an added_tokens.json in the folder is taken for new tokens of the adapter;
- a layer without tensors is taken for one that is not adapted.

Adapters on embeddings and output head depend on version and backend, and are refused.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from lorafit.errors import Problem
from lorafit.export.delta.files import read_lora
from lorafit.export.formats.as_read import AsRead, compare_as_read, put_on, unreadable
from lorafit.export.formats.format import Format, Written
from lorafit.export.formats.lora_only import Holds, called, mixture_or_turned, reasons_against
from lorafit.export.formats.one_rank import OneRank, at_one_rank
from lorafit.export.formats.servers import (
    is_converted,
    layers_by_block,
    served_base,
    served_name,
    what_was_done,
    write_for_servers,
    zeros_like,
)
from lorafit.export.verify import Agreement
from lorafit.model.base import load_config, meta_model
from lorafit.model.inventory import linear_shape
from lorafit.model.trained import AdapterSource
from lorafit.model.weights import Weight

# Layers of a block that SGLang computes as one, and all that it knows by these names.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_KNOWN = {"o_proj", "qkv_proj", "gate_up_proj", "down_proj", "out_proj"}.union(*_TOGETHER)


def _refused_part(model: Any, weight: Weight) -> str:
    if weight.part in ("embeddings", "head"):
        return f"adapters on {called(weight)} are not written for SGLang"
    word = weight.label.rpartition(".")[2]
    if word not in _KNOWN and weight.part not in ("experts", "router"):
        return f"SGLang knows no adapters on layers called {word}"
    return mixture_or_turned("SGLang", weight, model)


def _refuse(source: AdapterSource) -> list[Problem]:
    return reasons_against(source, Holds("SGLang", dora=False, refused_part=_refused_part))


def _write(source: AdapterSource, folder: Path) -> Written:
    trained = at_one_rank(read_lora(source))
    adapter = _with_companions(source, trained)
    write_for_servers(source, folder, adapter)
    done = [what_was_done(source, trained)]
    if added := len(adapter.layers) - len(trained.layers):
        done.append(f"zeros for {added} layers that SGLang fuses with adapted ones")
    return Written(
        is_converted(source, trained) or added > 0, "; ".join(filter(None, done)),
        f"python -m sglang.launch_server --model-path {served_base(source)} --enable-lora "
        f"--max-lora-rank {adapter.rank} --lora-paths {served_name(source)}={{folder}}")


def _with_companions(source: AdapterSource, adapter: OneRank) -> OneRank:
    """Zeros for the layers that are computed together with an adapted one."""
    model = meta_model(load_config(source.model), trust_remote_code=source.model.trust_remote_code)
    modules = dict(model.named_modules())
    layers = dict(adapter.layers)
    for block, held in layers_by_block(adapter.layers).items():
        for group in _TOGETHER:
            given = [word for word in group if word in held]
            for word in group:
                name = f"{block}.{word}"
                if given and word not in held and name in modules:
                    layers[name] = zeros_like(adapter.layers[f"{block}.{given[0]}"],
                                              linear_shape(modules[name])[0])
    return OneRank(adapter.rank, adapter.scale, layers, adapter.changed)


def _check(source: AdapterSource, folder: Path) -> tuple[Agreement, str]:
    return compare_as_read(source, _load, folder), "SGLang's rules"


def _load(model: Any, folder: Path) -> Any:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    rank, alpha = config["r"], config["lora_alpha"]
    tensors = load_file(folder / "adapter_model.safetensors")
    if (isinstance(config["target_modules"], str) or config["rank_pattern"]
            or config["alpha_pattern"] or config["use_rslora"] or config["use_dora"]
            or (folder / "added_tokens.json").exists()):
        raise unreadable(folder, "the configuration is one that SGLang refuses or ignores")
    words = {target.rpartition(".")[2] for target in config["target_modules"]}
    layers = {}
    for key, tensor in tensors.items():
        name, ending, _ = key.removeprefix("base_model.model.").partition(".lora_")
        if ending and key.endswith(".lora_A.weight"):
            layers[name] = AsRead(tensor, tensors[key.replace(".lora_A.", ".lora_B.")])
        elif not key.endswith(".lora_B.weight"):
            raise unreadable(folder, f"SGLang does not read the tensor {key}")
    there = {name for name, _ in model.named_modules()}
    for name, layer in layers.items():
        block, _, word = name.rpartition(".")
        group = next((group for group in _TOGETHER if word in group), (word,))
        if word not in words or len(layer.a) != rank or layer.b.shape[1] != rank or any(
                f"{block}.{other}" in there - layers.keys() for other in group):
            raise unreadable(folder, f"SGLang does not compute {name} from these files")
    return put_on(model, layers, alpha)


SGLANG = Format("sglang", "SGLang", _refuse, _write, _check, load=_load)
