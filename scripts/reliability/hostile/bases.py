"""Model directories: weights that are pickles or lie, configurations that load something else."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reliability.hostile.artifact import Artifact, Place, changed, pickled, safetensors, tensor

_CHECK = ["check", "r.yaml"]
_TRAIN = ["train", "r.yaml"]
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def _pickle_as(name: str) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        (place.base() / _WEIGHTS).unlink()
        (place.evil / name).write_bytes(pickled(place.canary))
        return _TRAIN

    return make


def _index_to(name: Callable[[Place], str]) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        folder = place.base()
        (folder / _WEIGHTS).rename(place.evil.parent / "elsewhere.safetensors")
        (folder / "pytorch_model.bin").write_bytes(pickled(place.canary))
        changed_to = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": name(place)}}
        (folder / _INDEX).write_text("{}")
        changed(folder / _INDEX, **changed_to)
        return _TRAIN

    return make


def _weights(content: Callable[[bytes], bytes]) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        file = place.base() / _WEIGHTS
        file.write_bytes(content(file.read_bytes()))
        return _TRAIN

    return make


def _config(file: str = "config.json", **values: Any) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        folder = place.base()
        place.module("evil.py")
        if not (folder / file).exists():
            (folder / file).write_text("{}")
        changed(folder / file, **values)
        return _CHECK

    return make


def _written(file: str, content: bytes) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        (place.base() / file).write_bytes(content)
        return _CHECK

    return make


def _link(file: str, target: Callable[[Place], Path | str]) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        link = place.base() / file
        link.unlink(missing_ok=True)
        link.symlink_to(target(place))
        return _TRAIN

    return make


def _weights_elsewhere(place: Place) -> Path:
    elsewhere = place.evil.parent / "elsewhere.safetensors"
    elsewhere.write_bytes(safetensors({}))
    return elsewhere


def _pipe(place: Place) -> list[str]:
    (place.base() / _WEIGHTS).unlink()
    os.mkfifo(place.evil / _WEIGHTS)
    return _TRAIN


def _sparse_config(place: Place) -> list[str]:
    with (place.base() / "config.json").open("r+b") as file:
        file.truncate(1 << 32)
    return _CHECK


def _adapter_beside(place: Place) -> list[str]:
    (place.base() / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "somebody/evil"}')
    return _CHECK


_AUTO_MAP = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model",
             "AutoTokenizer": ["evil.Tokenizer", None]}
_DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
_T = tensor(0, 4, [1])

ARTIFACTS = (
    *(Artifact(f"a pickle as {name}", "pickle", _pickle_as(name)) for name in (
        "pytorch_model.bin", "model.pt", "weights.pth", "model.ckpt", "model.pkl", _WEIGHTS)),
    Artifact("an index that names a pickle", "pickle", _index_to(lambda _: "pytorch_model.bin")),
    Artifact("an index that names an absolute path", "traversal",
             _index_to(lambda place: str(place.evil.parent / "elsewhere.safetensors"))),
    Artifact("an index that climbs out", "traversal",
             _index_to(lambda _: "../elsewhere.safetensors")),
    Artifact("an index that climbs out of a folder", "traversal",
             _index_to(lambda _: "x/../../elsewhere.safetensors")),
    Artifact("weights that are a link out", "traversal", _link(_WEIGHTS, _weights_elsewhere)),
    Artifact("a tokenizer that is a link to /etc/passwd", "traversal",
             _link("tokenizer.json", lambda _: "/etc/passwd")),
    Artifact("a licence that is a link to /etc/passwd", "traversal",
             _link("LICENSE", lambda _: "/etc/passwd")),
    Artifact("weights that are a pipe", "header", _pipe),
    Artifact("a header of 2^62 bytes", "header",
             _weights(lambda _: safetensors({}, length=1 << 62))),
    Artifact("a header of -1 bytes", "header",
             _weights(lambda _: safetensors({}, length=(1 << 64) - 1))),
    Artifact("a header that is a list", "header", _weights(lambda _: safetensors([1, 2]))),
    Artifact("a header nested 100,000 deep", "header", _weights(lambda _: safetensors(_DEEP))),
    Artifact("tensors that overlap", "header", _weights(
        lambda _: safetensors({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, bytes(12)))),
    Artifact("a tensor beyond the end", "header", _weights(
        lambda _: safetensors({"a": tensor(0, 1 << 40, [1 << 38])}, bytes(4)))),
    Artifact("a tensor at a negative place", "header", _weights(
        lambda _: safetensors({"a": tensor(-4, 0, [1])}, bytes(4)))),
    Artifact("a shape whose size overflows", "header", _weights(
        lambda _: safetensors({"a": tensor(0, 4, [1 << 62, 1 << 62, 4])}, bytes(4)))),
    Artifact("a gap between tensors", "header", _weights(
        lambda _: safetensors({"a": _T, "b": tensor(8, 12, [1])}, bytes(12)))),
    Artifact("a name twice in the header", "header", _weights(
        lambda _: safetensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                              b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)))),
    Artifact("weights that are cut short", "header", _weights(lambda old: old[:len(old) // 2])),
    Artifact("weights that are empty", "header", _weights(lambda _: b"")),
    *(Artifact(f"auto_map in {file}", "auto_map", _config(file, auto_map=_AUTO_MAP)) for file in (
        "config.json", "tokenizer_config.json", "processor_config.json",
        "preprocessor_config.json", "generation_config.json")),
    Artifact("auto_map in a nested configuration", "auto_map",
             _config(text_config={"auto_map": _AUTO_MAP})),
    Artifact("auto_map that names another repository", "auto_map",
             _config(auto_map={"AutoConfig": "somebody/evil--evil.Config"})),
    Artifact("_attn_implementation_internal", "private key",
             _config(_attn_implementation_internal="somebody/evil")),
    Artifact("_experts_implementation_internal, nested", "private key",
             _config(text_config={"_experts_implementation_internal": "somebody/evil"})),
    Artifact("a kernel of the hub as attention", "kernel",
             _config(attn_implementation="somebody/evil@main:attention")),
    Artifact("a kernel of the hub for a part", "kernel",
             _config(attn_implementation={"text_config": "somebody/evil"})),
    Artifact("a kernel of the hub for experts", "kernel",
             _config(_experts_implementation="paged|somebody/evil")),
    Artifact("trust_remote_code in a nested configuration", "auto_map",
             _config(encoder={"_name_or_path": "somebody/evil", "trust_remote_code": True})),
    Artifact("a model type that climbs out", "import", _config(model_type="../../../evil")),
    Artifact("a tokenizer class that is a pipeline", "import",
             _config("tokenizer_config.json", tokenizer_class="pipeline")),
    Artifact("a vocabulary from an address", "import",
             _config("tokenizer_config.json", vocab_file="http://127.0.0.1:9/vocab.json")),
    Artifact("weights named by the configuration", "traversal",
             _config(transformers_weights="../elsewhere.safetensors")),
    Artifact("a quantisation that nobody knows", "import",
             _config(quantization_config={"quant_method": "../evil", "modules": ["os"]})),
    Artifact("an adapter beside the model", "import", _adapter_beside),
    Artifact("a configuration nested 100,000 deep", "bomb", _written("config.json", _DEEP)),
    Artifact("a configuration of 4 GB", "bomb", _sparse_config),
    Artifact("a tokenizer nested 100,000 deep", "bomb", _written("tokenizer.json", _DEEP)),
    Artifact("a configuration that is a pickle", "pickle",
             lambda place: _written("config.json", pickled(place.canary))(place)),
)
