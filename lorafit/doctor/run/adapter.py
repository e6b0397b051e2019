"""A saved adapter: its files, its numbers, and whether names and shapes are those of its
configuration."""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from lorafit.doctor.run.tensors import Broken, Stored, not_finite, stored_tensors

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_PART = re.compile(rf"{re.escape(_PREFIX)}(?P<module>.+)\.lora_(?P<part>A|B)\.weight")


def wrong_with_adapter(directory: Path) -> list[str]:
    """Everything that speaks against the adapter in a directory, in words."""
    wrong: list[str] = []
    config: dict[str, Any] | None = None
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except FileNotFoundError:
        wrong.append(f"{CONFIG} is missing")
    except (OSError, ValueError, RecursionError) as error:
        wrong.append(f"{CONFIG} cannot be read: {error}")
        config = None
    tensors, wrong_file = wrong_with_file(directory / WEIGHTS)
    wrong += wrong_file
    if tensors is not None and not tensors:
        wrong.append(f"{WEIGHTS} holds no tensor")
    if tensors and config is not None and config.get("peft_type") == "LORA":
        wrong += _lora(tensors, config)
    return wrong


def wrong_with_file(file: Path) -> tuple[dict[str, Stored] | None, list[str]]:
    """The tensors of a safetensors file, None where it cannot be read, and what is wrong in it."""
    try:
        tensors = stored_tensors(file)
        bad = not_finite(file, tensors)
    except Broken as error:
        return None, [f"{file.name} {error}"]
    except OSError as error:
        return None, [f"{file.name} cannot be read: {error.strerror or error}"]
    return tensors, [f"{file.name}: {_some(bad)} not finite"] if bad else []


def _lora(tensors: dict[str, Stored], config: dict[str, Any]) -> list[str]:
    """Pairs of A and B with one rank, that of the configuration, for the modules it names."""
    pairs: dict[str, dict[str, Stored]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if (match := _PART.fullmatch(name)) is not None:
            pairs[match["module"]][match["part"]] = tensor
    wrong = []
    alone = sorted(module for module, parts in pairs.items() if len(parts) == 1)
    if alone:
        wrong.append(f"{alone[0]} has no {'B' if 'A' in pairs[alone[0]] else 'A'}"
                     + (f", and {len(alone) - 1} more" if len(alone) > 1 else ""))
    for module, parts in sorted(pairs.items()):
        if len(parts) != 2 or any(len(part.shape) != 2 for part in parts.values()):
            continue
        rank, of_b = parts["A"].shape[0], parts["B"].shape[1]
        wanted = _rank(module, config)
        if rank != of_b:
            wrong.append(f"{module}: A has rank {rank} and B {of_b}")
        elif wanted is not None and rank != wanted and ".experts" not in module:
            wrong.append(f"{module} has rank {rank}, and the configuration says {wanted}")
    named = config.get("target_modules")
    if isinstance(named, list) and pairs:
        missing = [name for name in named
                   if not any(module == name or module.endswith(f".{name}") for module in pairs)]
        if missing:
            wrong.append(f"{', '.join(missing[:3])} of target_modules has no tensor")
    if config.get("use_dora") and pairs and not any("lora_magnitude_vector" in name
                                                    for name in tensors):
        wrong.append("use_dora, and there are no magnitudes")
    return wrong[:4] + ([f"and {len(wrong) - 4} more like that"] if len(wrong) > 4 else [])


def _rank(module: str, config: dict[str, Any]) -> int | None:
    """By peft's rule for patterns; None where the configuration does not say."""
    try:
        for pattern, rank in (config.get("rank_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return int(rank)
        return int(config["r"])
    except (KeyError, TypeError, ValueError, re.error):
        return None


def _some(names: list[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} is"
    return f"{names[0]} and {len(names) - 1} more are"
