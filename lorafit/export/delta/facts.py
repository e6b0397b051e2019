"""How an adapter was trained: from its run, or what its configuration says of it."""

import json
from pathlib import Path
from typing import Any

from lorafit.model.trained import AdapterSource
from lorafit.run_dir import RunDir

# Entries of peft's configuration that are told where they are set.
_TOLD = {
    "r": "rank", "rank": "rank", "lora_alpha": "alpha", "use_rslora": "rslora", "use_dora": "dora",
    "bias": "bias", "modules_to_save": "modules_to_save", "target_modules": "target_modules",
    "target_parameters": "target_parameters", "exclude_modules": "exclude_modules",
    "layers_to_transform": "layers", "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern", "trainable_token_indices": "trained tokens",
    "alora_invocation_tokens": "active after tokens", "lora_bias": "lora_bias",
    "peft_version": "written by peft",
}


def training_facts(source: AdapterSource) -> dict[str, str]:
    """What a person asks of an adapter that they find, in words, by name."""
    told = {}
    for key, name in _TOLD.items():
        value = source.config.get(key)
        if value not in (None, False, [], {}, "none"):
            told[name] = ", ".join(value) if isinstance(value, list) and all(
                isinstance(item, str) for item in value) else str(value)
    return told | (_of_the_run(source.run) if source.run is not None else {})


def _of_the_run(run: RunDir) -> dict[str, str]:
    record, result = _read(run.record), _read(run.result)
    told = {"recipe": str(run.recipe)}
    if rows := record.get("train"):
        told["rows"] = (f"{rows['rows_used']:,} from {rows['source']}, {rows['tokens']:,} tokens, "
                        f"{rows['supervised_tokens']:,} supervised")
    if progress := result.get("progress"):
        told["steps"] = f"{progress['step']:,}, weights of step {result['kept_step']:,}"
        if progress.get("first_eval_loss") is not None:
            told["held-out loss"] = (
                f"{progress['first_eval_loss']:.4f} before, {progress['best_loss']:.4f} at best "
                f"(step {progress['best_step']:,}), {progress['last_eval_loss']:.4f} at the end")
    else:
        told["steps"] = "the run did not end"
    return told


def _read(path: Path) -> dict[str, Any]:
    """A file of the run; nothing where it is missing or cut off."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
