"""A base's weights by kind, and its parameters, from config.json and the headers of its files."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorafit.errors import UserError
from lorafit.json_files import read_object
from lorafit.model.intake import INDEX, weight_files
from lorafit.model.local_files import hub_commit, is_hub_id, local_files
from lorafit.model.tensor_headers import check_tensor_file
from lorafit.model.weights import ROUTER_NAMES, Part, Stack, Weight, part_of
from lorafit.plan.families import Tensors, known_families, tensors_of
from lorafit.plan.sizes import Sizes, sizes_of, text_part
from lorafit.recipe.schema import Model

_EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|wpe"
                         r"|embed_positions|position_embeddings)\.weight$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")
_NUMBERED = re.compile(r"^(.*?)\.(\d+)\.")
_EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.(\w+)\.weight$")
# What transformers 5 joins into one tensor for all experts, and in which order of its halves.
_JOINED = {"gate_proj": "gate_up_proj", "w1": "gate_up_proj", "up_proj": "gate_up_proj",
           "w3": "gate_up_proj", "down_proj": "down_proj", "w2": "down_proj"}
_CONV1D = re.compile(r"\.(c_attn|c_fc|c_proj)\.weight$")
# Of files, and not parameters of a model.
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq", ".e_score_correction_bias")
# Names that transformers 5 changes as it loads a model.
_RENAMED = {".block_sparse_moe.": ".mlp.", "embed_out.": "lm_head."}
_VISION = re.compile(r"(^|\.)(vision|visual|audio|image|multi_modal|multimodal)")


@dataclass(frozen=True)
class Shapes:
    """What is known of a base without its weights.

    weights: as `model.inventory.weights_of` lists them, the output head also where it is tied.
    parameters: of the model, a tied head counted once. stored: how its files are quantised, empty
    where they hold plain numbers. file_bytes: of its tensors, None where only config.json was read.
    tensors: shape of every parameter, by its name in transformers' modules, but a tied head's.
    remarks: what is not certain.
    """

    sizes: Sizes
    weights: tuple[Weight, ...]
    parameters: int
    tied: bool
    stack: Stack
    stored: str
    file_bytes: int | None
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    remarks: tuple[str, ...] = ()

    @property
    def other_parameters(self) -> int:
        """Of norms, biases and whatever no adapter is put on."""
        listed = sum(math.prod(weight.shape) for weight in self.weights
                     if not (self.tied and weight.part == "head"))
        return self.parameters - listed


def shapes_of(section: Model) -> Shapes:
    """Of a base that the recipe names: its headers on this machine, or over the network from the
    hub; weights are not downloaded. UserError when there is none, or it cannot be sized."""
    folder, _ = local_files(section)
    where = f"model.base: {section.base}"
    if not (folder / "config.json").exists():
        raise UserError("is a directory without a config.json", where,
                        "name a model directory, a hub id, or tiny")
    config = read_object(folder / "config.json")
    sizes = sizes_of(config, where)
    tensors, file_bytes = _in_files(section, folder)
    return from_tensors(config, sizes, tensors, file_bytes, where)


def from_tensors(config: Mapping[str, Any], sizes: Sizes, tensors: Tensors | None,
                 file_bytes: int | None, where: str) -> Shapes:
    """Shapes from the names and shapes of tensors, or from the configuration where there are none
    or they are packed."""
    stored, remarks = _stored(config), []
    if stored and tensors is not None and any(name.endswith(_PACKED) for name in tensors):
        tensors = None
    if tensors is None:
        tensors = tensors_of(config, sizes)
        if tensors is None:
            raise _unknown(sizes, stored, file_bytes, where)
        if file_bytes is None:
            remarks.append(f"no weights were found: shapes follow from config.json, as "
                           f"{sizes.model_type} has them")
    tensors, dropped = _language_part(tensors)
    if dropped:
        remarks.append(f"{dropped:,} tensors of other kinds than text are left out")
    tensors = _as_modules(tensors, sizes)
    weights = _weights(tensors)
    head = next((weight for weight in weights if weight.part == "head"), None)
    tied = head is None or bool(text_part(config).get("tie_word_embeddings"))
    parameters = sum(math.prod(shape) for shape in tensors.values())
    if head is None:
        weights.append(Weight("lm_head", "head", (sizes.vocabulary, sizes.hidden_size)))
    elif tied:
        parameters -= math.prod(head.shape)
        del tensors[head.path]
    return Shapes(sizes, tuple(weights), parameters, tied, _stack(tensors, sizes), stored,
                  file_bytes, tensors, tuple(remarks))


_PACKED = (".qweight", ".weight_packed", ".weight.absmax", ".weight.quant_state.bitsandbytes__nf4",
           ".weight.quant_state.bitsandbytes__fp4", ".weight_scale", ".weight_scale_inv",
           "_blocks", ".SCB")


def _in_files(section: Model, folder: Path) -> tuple[Tensors | None, int | None]:
    """Shapes of a base's tensors, and their bytes; None where it has no files to read them from."""
    if not is_hub_id(section.base) or _is_complete(folder):
        try:
            files = weight_files(folder)
        except UserError as error:
            if "no weights" in error.problems[0].what:
                return None, None
            raise
        headers = [check_tensor_file(file) for file in files if file.exists()]
        if len(headers) < len(files):
            return None, None
        entries = {name: entry for header in headers for name, entry in header.items()
                   if name != "__metadata__"}
        return ({name: tuple(entry["shape"]) for name, entry in entries.items()},
                sum(end - start for start, end in (e["data_offsets"] for e in entries.values())))
    return _on_hub(section)


def _is_complete(folder: Path) -> bool:
    """Whether the weights of a model of the hub lie in the cache."""
    if (folder / INDEX).exists():
        return all(file.exists() for file in weight_files(folder))
    return any(folder.glob("*.safetensors"))


def _on_hub(section: Model) -> tuple[Tensors | None, int | None]:
    """The same of a repository of the hub, by requests for the first bytes of each file."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError

    try:
        found = HfApi().get_safetensors_metadata(section.base, revision=hub_commit(section))
    except NotASafetensorsRepoError:
        return None, None
    except Exception as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the headers of its weights cannot be read from the hub: {message}",
                        f"model.base: {section.base}",
                        "check the network, or download the model first") from None
    entries = {name: tensor for file in found.files_metadata.values()
               for name, tensor in file.tensors.items()}
    return ({name: tuple(tensor.shape) for name, tensor in entries.items()},
            sum(end - start for start, end in (t.data_offsets for t in entries.values())))


def _stored(config: Mapping[str, Any]) -> str:
    settings = config.get("quantization_config") or text_part(config).get("quantization_config")
    if not isinstance(settings, Mapping):
        return ""
    if settings.get("load_in_4bit"):
        return str(settings.get("bnb_4bit_quant_type", "fp4"))
    return "int8" if settings.get("load_in_8bit") else str(
        settings.get("quant_method") or "an unnamed format")


def _unknown(sizes: Sizes, stored: str, file_bytes: int | None, where: str) -> UserError:
    """What is missing, and the part that is certain all the same."""
    embeddings = sizes.vocabulary * sizes.hidden_size
    certain = f"its embeddings have {embeddings:,} parameters"
    if file_bytes is not None:
        certain += f", its files hold {file_bytes / 1e9:,.2f} GB"
    missing = (f"its weights are packed ({stored})" if stored else "there are no weights whose "
               "headers could be read")
    return UserError(
        f"{sizes.model_type} cannot be sized: {missing}, and its shapes are not known from "
        f"config.json alone. Certain is: {certain}", where,
        "name a directory or repository with safetensors in 16 or 32 bits; without them these are "
        f"known: {', '.join(known_families())}")


def _language_part(tensors: Tensors) -> tuple[Tensors, int]:
    """The tensors of the language model, and how many others there were."""
    kept = {name: shape for name, shape in tensors.items() if not _VISION.search(name)}
    if any(".language_model." in f".{name}" for name in kept):
        kept = {name.replace("language_model.model.", "model.").replace("language_model.", ""):
                shape for name, shape in kept.items()}
    return kept, len(tensors) - len(kept)


def _as_modules(tensors: Tensors, sizes: Sizes) -> Tensors:
    """The same as transformers' modules have it: the experts of a layer joined, Conv1D turned."""
    found: Tensors = {}
    joined: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in tensors.items():
        for old, new in _RENAMED.items():
            name = name.replace(old, new)
        expert = _EXPERT.match(name)
        if expert is not None and expert[3] in _JOINED:
            stack = joined.setdefault(f"{expert[1]}.{_JOINED[expert[3]]}", {})
            stack[f"{expert[2]}.{expert[3]}"] = shape
            found.setdefault(f"{expert[1]}.{_JOINED[expert[3]]}", ())
        elif sizes.model_type == "gpt2" and len(shape) == 2 and _CONV1D.search(name):
            found[name] = shape[::-1]
        elif not name.endswith(_BUFFERS):
            found[name] = shape
    for name, stack in joined.items():
        count = len({key.split(".")[0] for key in stack})
        rows = sum(shape[0] for shape in stack.values()) // count
        found[name] = (count, rows, next(iter(stack.values()))[1])
    return found


def _weights(tensors: Tensors) -> list[Weight]:
    """Matrices that an adapter can be put on, in the order of the files."""
    mixtures = {name.split(".experts.")[0] for name in tensors if ".experts." in name}
    routers = {f"{mixture}.{word}" for mixture in mixtures for word in ROUTER_NAMES}
    found = []
    for name, shape in tensors.items():
        module = name.removesuffix(".weight")
        if len(shape) == 3:
            part: Part = "shared experts" if "shared" in name else "experts"
            found.append(Weight(name, part, shape, is_parameter=True))
        elif len(shape) == 2 and name.endswith(".weight"):
            if _EMBEDDINGS.search(name):
                found.append(Weight(module, "embeddings", shape))
            elif _HEAD.search(name):
                found.append(Weight(module, "head", shape))
            else:
                # Routers are bare parameters in transformers 5, linear layers in older forms.
                part = part_of(module, routers)
                is_bare = part == "router" and module.rpartition(".")[2] != "shared_expert_gate"
                found.append(Weight(name if is_bare else module, part, shape, is_bare))
    return found


def _stack(tensors: Tensors, sizes: Sizes) -> Stack:
    prefixes = [match[1] for name in tensors if (match := _NUMBERED.match(name))]
    prefix = max(dict.fromkeys(prefixes), key=prefixes.count, default="")
    return Stack(prefix, sizes.layers if prefix else 0, sizes.active_experts)
