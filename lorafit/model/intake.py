"""What is looked at of a model's or an adapter's directory before any library reads it.

A directory that somebody else made is refused when a file in it would make a library run code,
import or download something, or read beyond the directory. Which keys do, in the versions that are
tested, and what is not covered: docs/security.md.
"""

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from lorafit.errors import Problem, UserError
from lorafit.json_files import read_object
from lorafit.model.tensor_headers import check_tensor_file
from lorafit.recipe.methods import METHODS

CODE_REMEDY = "read that code; if you trust it, --set model.trust_remote_code=true"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
OTHER_WEIGHTS = (".h5", ".msgpack", ".ot", ".npz", ".npy", ".joblib", ".onnx")
CONVERT = ("convert it once where it may do no harm, in a container without network: "
            "from_pretrained(…).save_pretrained(…); or take a copy that has safetensors")
_TAKE_OUT = "take the key out if you know what it is for, or use another copy of the model"

# Read by transformers, tokenizers or peft when a model or an adapter is loaded.
_LARGE = {"tokenizer.json": 256 << 20, "vocab.json": 256 << 20}
_TOKENIZER_CLASS = re.compile(r"[A-Za-z0-9_]{0,80}(Tokenizer|TokenizerFast|Backend)")
_PRIVATE = re.compile(r"_\w*_internal")
_MODULES_OF_ADAPTERS = ("transformers", "peft", "torch")
_LONGEST_PATTERN = 4096
_MOST_REPETITIONS = 5
_FEW = 4


def check_model_files(folder: Path, *, may_run_code: bool = False, where: str = "",
                      weights: bool = True) -> None:
    """Look at a model directory. UserError, with every problem found, when it is refused.

    may_run_code: whether the user has said that code of the model is run. where: of the messages.
    weights: whether they are going to be read; they are looked at too then.
    """
    where = where or str(folder)
    problems = list(_outside(folder))
    if not problems:
        problems = list(_in_settings(folder, may_run_code, where))
    if not problems and (folder / "config.json").exists() and (folder / ADAPTER_CONFIG).exists():
        problems.append(Problem(
            f"holds {ADAPTER_CONFIG} beside a model, and transformers would load the base that it "
            "names instead", where, f"take {ADAPTER_CONFIG} out of the directory"))
    if problems:
        raise UserError(problems=problems)
    if weights:
        for file in weight_files(folder, where):
            check_tensor_file(file)


def check_adapter_files(folder: Path) -> dict[str, Any]:
    """Look at an adapter directory, and return its configuration. UserError as above."""
    remedy = "give a run directory, or an adapter directory as peft writes it"
    if not folder.is_dir():
        raise UserError("no such run or adapter", str(folder), remedy)
    if problems := list(_outside(folder)):
        raise UserError(problems=problems)
    if not (folder / ADAPTER_CONFIG).exists():
        raise UserError(f"holds no {ADAPTER_CONFIG}", str(folder), remedy)
    if not (folder / ADAPTER_WEIGHTS).exists():
        for file in sorted(folder.iterdir()):
            if file.name.startswith("adapter_model") and file.suffix in PICKLES:
                raise UserError("holds its weights in a pickle, which can run code on loading",
                                str(file), CONVERT)
        raise UserError(f"holds no {ADAPTER_WEIGHTS}", str(folder), remedy)
    problems = list(_in_settings(folder, False, str(folder)))
    config = read_object(folder / ADAPTER_CONFIG)
    problems += _in_adapter_config(config, str(folder / ADAPTER_CONFIG))
    if problems:
        raise UserError(problems=problems)
    check_tensor_file(folder / ADAPTER_WEIGHTS)
    return config


def check_run_directory(folder: Path) -> None:
    """UserError when a link in a run directory leads out of it: what is written there would land
    elsewhere."""
    places = [folder, *(folder / name for name in ("evaluations", "checkpoints"))]
    if problems := [problem for place in places if place.is_dir() and not (
            place != folder and place.is_symlink()) for problem in _outside(place, folder)]:
        raise UserError(problems=problems)


def weight_files(folder: Path, where: str = "") -> list[Path]:
    """The files that hold a model's weights, all of them safetensors in the directory itself.

    UserError when there is none, or the index names something else.
    """
    where = where or str(folder)
    if (folder / INDEX).exists():
        names = read_object(folder / INDEX).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise UserError("is damaged: it has no weight_map", str(folder / INDEX),
                            "copy or download it again")
        for name in dict.fromkeys(map(str, names.values())):
            _check_weight_name(name, str(folder / INDEX))
        return [folder / name for name in sorted(set(names.values()))]
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    if found := sorted(folder.glob("*.safetensors")):
        return found
    for file in sorted(folder.iterdir()):
        if file.suffix in PICKLES:
            raise UserError(f"holds its weights in {file.name}, a pickle, which can run code on "
                            "loading", where, CONVERT)
        if file.suffix in OTHER_WEIGHTS:
            raise UserError(f"holds its weights in {file.name}; only safetensors are read", where,
                            CONVERT)
    raise UserError("holds no weights (*.safetensors)", where, "name a complete model directory")


def code_files(folder: Path) -> list[Path]:
    """The Python files of a model directory, which run where the user has said so."""
    return sorted(file for file in folder.rglob("*.py") if file.is_file())


def _check_weight_name(name: str, where: str) -> None:
    if Path(name).suffix in PICKLES:
        raise UserError(f"names {name!r}, a pickle, which can run code on loading", where, CONVERT)
    if not re.fullmatch(r"[A-Za-z0-9_.-]+\.safetensors", name) or name.startswith("."):
        shown = name if len(name) < 80 else f"{name[:77]}…"
        raise UserError(f"names {shown!r}, which is no safetensors file in the directory", where,
                        "put the weights beside it, and write their plain names")


def _outside(folder: Path, root: Path | None = None) -> Iterator[Problem]:
    """Links that lead out of the directory (or `root`), but for those that the hub's cache is made
    of, and what is neither a file nor a directory."""
    inside = [(root or folder).resolve()]
    if inside[0].parent.name == "snapshots":
        inside.append(inside[0].parent.parent / "blobs")
    for file in sorted(folder.iterdir()):
        try:
            target = file.resolve()
            mode = file.stat().st_mode
        except (OSError, RuntimeError):
            yield Problem("is a link that leads nowhere", str(file), "mend or remove it")
            continue
        if file.is_symlink() and not any(target.is_relative_to(place) for place in inside):
            yield Problem("is a link that leads out of the directory", str(file),
                          "put the file itself there, or name the directory that it lies in")
        elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            yield Problem("is neither a file nor a directory", str(file), "remove it")


def _in_settings(folder: Path, may_run_code: bool, where: str) -> Iterator[Problem]:
    """What the JSON files of a directory ask for."""
    for file in sorted(folder.glob("*.json")):
        if file.name == INDEX or file.is_dir():
            continue
        if file.name in _LARGE:
            values = read_object(file, most_bytes=_LARGE[file.name])
            if file.name == "tokenizer.json":
                yield from _long_patterns(values, str(file))
            continue
        try:
            values = read_object(file)
        except UserError:
            # Whoever reads it says so; a list such as a file of templates is none of these.
            if file.name in ("config.json", "tokenizer_config.json", "generation_config.json",
                             ADAPTER_CONFIG):
                raise
            continue
        yield from _in_values(values, file, may_run_code, where)


def _in_values(values: dict[str, Any], file: Path, may_run_code: bool,
               where: str) -> Iterator[Problem]:
    for path, key, value in _every_key(values):
        place = f"{file}: {path}"
        if key == "auto_map" and value:
            if not may_run_code:
                yield Problem(f"the model brings Python code of its own ({file.name} has "
                              "auto_map), which is not run by default", where, CODE_REMEDY)
            elif "--" in json.dumps(value):
                yield Problem("names code of another repository, whose commit nobody has pinned",
                              place, "copy that code into the model's directory, and name it there")
        elif _PRIVATE.fullmatch(key):
            yield Problem("is a private key, by which a configuration can load code from the hub "
                          "(CVE-2026-4372)", place, _TAKE_OUT)
        elif "implementation" in key and _names_a_kernel(value):
            yield Problem("names a kernel on the hub: compiled code of a repository", place,
                          "take the key out, and choose attention with model.attention")
        elif key == "trust_remote_code" and value:
            yield Problem("asks that code of a model is run, which only the user can", place,
                          _TAKE_OUT)
        elif key == "tokenizer_class" and isinstance(value, str) \
                and not _TOKENIZER_CLASS.fullmatch(value):
            yield Problem(f"{value[:80]!r} is no class of tokenizers", place,
                          "write the class that the tokenizer was saved with")
        elif key == "transformers_weights" and value:
            try:
                _check_weight_name(str(value), place)
            except UserError as error:
                yield from error.problems
        elif key.endswith("_file") and isinstance(value, str) and "://" in value:
            yield Problem("names an address where a file should be", place, _TAKE_OUT)


def _names_a_kernel(value: Any) -> bool:
    texts = value.values() if isinstance(value, dict) else [value]
    return any(isinstance(text, str) and ("/" in text or ":" in text) for text in texts)


def _in_adapter_config(config: dict[str, Any], where: str) -> Iterator[Problem]:
    """What peft would import, load or fetch because of an adapter's configuration."""
    mapping = config.get("auto_mapping")
    if mapping:
        library = str(mapping.get("parent_library")) if isinstance(mapping, dict) else ""
        if library.partition(".")[0] not in _MODULES_OF_ADAPTERS:
            yield Problem(f"asks to import {library[:80]!r} (auto_mapping)", where,
                          "take auto_mapping out; nothing here needs it")
    if config.get("megatron_config") or config.get("megatron_core") not in (None, "megatron.core"):
        yield Problem("asks to import a library for Megatron (megatron_config, megatron_core)",
                      where, "take both keys out; such layers are not read")
    if config.get("adapters"):
        yield Problem("names other adapters to load", where, "X-LoRA is not read")
    for path, key, value in _every_key(config):
        if key.endswith("_file") and value:
            yield Problem(f"names a file to load ({path}), which peft reads as a pickle", where,
                          "take the key out; it is for the start of training only")
    yield from _slow_patterns(config, where)
    for key in ("peft_type", "lorafit_method", "base_model_name_or_path", "revision"):
        value = config.get(key)
        if value is not None and not isinstance(value, str):
            yield Problem(f"{key} is no text", where, "copy it again")
    method = config.get("lorafit_method")
    if method is not None and (method not in METHODS or METHODS[str(method)].config):
        yield Problem(f"{str(method)[:80]!r} is no method of lorafit", where,
                      "it is of another version of lorafit, which can read it, or damaged")


def _slow_patterns(config: dict[str, Any], where: str) -> Iterator[Problem]:
    """Patterns of layers' names that are none, or that can take for ever.

    peft matches them with every layer by Python's re, which nothing can stop: a repetition within
    another takes exponentially long on the wrong name, many in a row a high power of its length.
    """
    remedy = "write the names out"
    for pattern in _patterns(config):
        if len(pattern) > _LONGEST_PATTERN:
            yield Problem("has a pattern of layers' names that is too long", where, remedy)
            continue
        try:
            repetitions = list(_repetitions(_parser.parse(pattern)))
        except (re.error, RecursionError, OverflowError) as error:
            yield Problem(f"has a pattern of layers' names that is none: {error}", where, remedy)
            continue
        if any(depth > 1 for depth in repetitions) or len(repetitions) > _MOST_REPETITIONS:
            yield Problem(f"has a pattern of layers' names that can take for ever to match: "
                          f"{pattern[:80]!r}", where, remedy)


def _repetitions(tree: Any, depth: int = 0) -> Iterator[int]:
    """How deep each repetition of a parsed pattern lies in others; 1 for one that lies in none.

    Of those with a limit, only ones that may repeat often count.
    """
    for operation, argument in tree:
        inner = depth
        if str(operation).endswith("REPEAT") and argument[1] > _FEW:
            inner = depth + 1
            yield inner
        if operation is _parser.BRANCH and depth:
            yield depth + 1  # of several ways to match the same, each doubles the work
        waiting = [argument]
        while waiting:
            part = waiting.pop()
            if isinstance(part, _parser.SubPattern):
                yield from _repetitions(part, inner)
            elif isinstance(part, list | tuple):
                waiting += part


def _patterns(config: dict[str, Any]) -> Iterator[str]:
    for key in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        value = config.get(key)
        yield from [value] if isinstance(value, str) else []
    for key in ("rank_pattern", "alpha_pattern"):
        value = config.get(key)
        yield from map(str, value) if isinstance(value, dict) else []


def _long_patterns(values: dict[str, Any], where: str) -> Iterator[Problem]:
    for path, key, value in _every_key(values, skip=("vocab", "merges", "added_tokens")):
        if key == "Regex" and isinstance(value, str) and len(value) > _LONGEST_PATTERN:
            yield Problem(f"has a pattern of {len(value):,} characters", f"{where}: {path}",
                          "use another copy of the tokenizer")


def _every_key(values: Any, path: str = "",
               skip: tuple[str, ...] = ()) -> Iterator[tuple[str, str, Any]]:
    """Each key of nested values with its dotted path, in order."""
    waiting: list[tuple[str, Any]] = [(path, values)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict):
            for key, item in value.items():
                inner = f"{path}.{key}" if path else str(key)
                yield inner, str(key), item
                if key not in skip:
                    waiting.append((inner, item))
        elif isinstance(value, list):
            waiting += [(f"{path}[{number}]", item) for number, item in enumerate(value)
                        if isinstance(item, dict | list)]
