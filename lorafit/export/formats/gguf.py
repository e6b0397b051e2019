"""A GGUF adapter, for llama.cpp (`--lora`) and Ollama (`ADAPTER`)."""

import tempfile
from pathlib import Path
from typing import Any

from lorafit.errors import Problem, UserError
from lorafit.export.delta.factors import Factors
from lorafit.export.delta.files import (
    LoraAdapter,
    LoraLayer,
    read_lora,
    write_lora,
)
from lorafit.export.formats.as_read import compare_as_read
from lorafit.export.formats.format import Format, Written
from lorafit.export.formats.lora_only import (
    Holds,
    called,
    mixture_or_turned,
    reasons_against,
    shares_its_weight,
)
from lorafit.export.gguf.architectures import architecture_of, remarks
from lorafit.export.gguf.chat import end_of_turn, plain_template, stops
from lorafit.export.gguf.convert import MODELFILE, name_map
from lorafit.export.gguf.library import gguf_library
from lorafit.export.gguf.modelfile import modelfile
from lorafit.export.gguf.reading import Pair, read_adapter
from lorafit.export.gguf.weights import file_name, neighbours, rotated_heads
from lorafit.export.verify import Agreement
from lorafit.model.adapters.files import load_adapter
from lorafit.model.base import load_config
from lorafit.model.trained import AdapterSource
from lorafit.model.weights import Weight
from lorafit.run_dir import write_text

ADAPTER = "adapter.gguf"
BASE = "base.gguf"
_EMBEDDING = "token_embd.weight"


def _refuse(source: AdapterSource) -> list[Problem]:
    try:
        gguf, config = gguf_library(), load_config(source.model)
        architecture = architecture_of(config, source.model.base)
    except UserError as error:
        return error.problems
    names = name_map(gguf, architecture, config)

    def refused_part(model: Any, weight: Weight) -> str:
        if why := mixture_or_turned("llama.cpp", weight, model):
            return why
        if shares_its_weight(model, weight):
            return (f"llama.cpp cannot change {called(weight)} alone, where embeddings and output "
                    "head are one weight")
        if file_name(names, weight.path) is None:
            return f"{weight.path} has no name in llama.cpp's {architecture.name}"
        return ""

    return reasons_against(source, Holds("llama.cpp", dora=False, refused_part=refused_part))


def _write(source: AdapterSource, folder: Path) -> Written:
    """A and B as they are, unless llama.cpp would scale a layer by another number than training.

    It computes alpha / rank, with one alpha for all and the rank read from each B: what rsLoRA or a
    pattern of alphas makes of that is multiplied into B.
    """
    gguf, config = gguf_library(), load_config(source.model)
    architecture, adapter = architecture_of(config, source.model.base), read_lora(source)
    names, text = name_map(gguf, architecture, config), config.get_text_config()
    alpha = float(adapter.config.get("lora_alpha") or 1)
    writer = gguf.GGUFWriter(folder / ADAPTER, architecture.name)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    writer.add_name(source.run.path.name if source.run is not None else source.directory.name)
    for layer in adapter.layers.values():
        rank = layer.factors.rank
        a, b = layer.factors.a[0], layer.factors.b[0] * (rank / alpha)
        name = file_name(names, layer.weight_name)
        if heads := rotated_heads(architecture, text, layer.name):
            b = neighbours(b, heads)
        for half, part in (("a", a.T if name == _EMBEDDING else a), ("b", b)):
            writer.add_tensor(f"{name}.lora_{half}", part.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = source.tokenizer()
    template = plain_template(tokenizer)
    closing = end_of_turn(tokenizer, template)
    generation = {"eos_token_id": _generation_ends(source)}
    write_text(folder / MODELFILE, modelfile(
        BASE, adapter=ADAPTER, base=source.model.base, tokenizer=tokenizer, template=template,
        stops=stops(tokenizer, generation, closing), adds_bos=_adds_bos(tokenizer)))
    return Written(converted=True, remark="; ".join(remarks(architecture, config)))


def _generation_ends(source: AdapterSource) -> Any:
    from transformers import GenerationConfig

    from lorafit.model.local_files import local_files

    try:
        return GenerationConfig.from_pretrained(local_files(source.model)[0],
                                                local_files_only=True).eos_token_id
    except OSError:
        return None


def _adds_bos(tokenizer: Any) -> bool:
    return bool(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)


def _check(source: AdapterSource, folder: Path) -> tuple[Agreement, str]:
    return compare_as_read(source, _load, folder), "llama.cpp's rules"


def _owns(folder: Path) -> bool:
    return (folder / ADAPTER).is_file()


def _load(model: Any, folder: Path) -> Any:
    """Read by llama.cpp's rules, and put into plain peft."""
    from peft import LoraConfig

    gguf, config = gguf_library(), model.config
    pairs = list(read_adapter(gguf, folder / ADAPTER, architecture_of(config, str(folder)), config))
    values = LoraConfig(task_type="CAUSAL_LM", target_modules=[pair.module for pair in pairs])
    with tempfile.TemporaryDirectory(prefix="lorafit-") as name:
        write_lora(Path(name), _as_peft(values.to_dict(), pairs))
        return load_adapter(model, Path(name))


def _as_peft(config: dict[str, Any], pairs: list[Pair]) -> LoraAdapter:
    layers = {pair.module: LoraLayer(
        pair.module, Factors(pair.a.double()[None], pair.scale * pair.b.double()[None]), 1.0,
        pair.embedding) for pair in pairs}
    return LoraAdapter(config, layers, {})


_USAGE = """\
```sh
llama-cli -m base.gguf --lora adapter.gguf
```

`base.gguf` is the base in GGUF form; `Modelfile` is for `ollama create`.
"""

GGUF = Format("gguf", "llama.cpp and Ollama", _refuse, _write, _check, owns=_owns, load=_load,
              usage=_USAGE, library="gguf")
