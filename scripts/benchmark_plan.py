"""What a plan predicts beside what runs take: memory and seconds a step, over many kinds of run.

    python scripts/benchmark_plan.py                       # all cases, a table
    python scripts/benchmark_plan.py --only nf4 --keep out # some of them; bases and runs stay
    python scripts/benchmark_plan.py --markdown docs/plan-accuracy.md

Each case is a process of its own: `lorafit train` on a shrunken base of random weights, for a few
steps. Predicted is what the run wrote into its record before its first step; measured is what it
wrote into its result. No figure is measured again because it did not please.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SMALL = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
         "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 4096,
         "tie_word_embeddings": True}
WIDE = SMALL | {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12,
                "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 16384,
                "tie_word_embeddings": False}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-30m": ("llama", SMALL),
    "llama-190m": ("llama", WIDE),
    "qwen3-30m": ("qwen3", SMALL | {"num_key_value_heads": 4}),
    "gemma-150m": ("gemma", SMALL | {"num_key_value_heads": 1, "vocab_size": 128_000,
                                     "num_hidden_layers": 16}),
    "mixtral-140m": ("mixtral", SMALL | {"num_local_experts": 8, "num_experts_per_tok": 2,
                                         "num_key_value_heads": 4}),
    "qwen3-moe-130m": ("qwen3_moe", SMALL | {
        "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 640,
        "num_key_value_heads": 4}),
}
STEPS = 5


@dataclass(frozen=True)
class Case:
    """words: of a row, of about the same number of tokens. settings: as `--set` takes them."""

    name: str
    base: str
    settings: dict[str, Any] = field(default_factory=dict)
    words: int = 250
    at_once: int = 4


def _adapter(**keys: Any) -> dict[str, Any]:
    return {f"adapter.{key}": value for key, value in keys.items()}


def _training(**keys: Any) -> dict[str, Any]:
    return {f"training.{key}": value for key, value in keys.items()}


CASES = [
    Case("rank 16, all linear", "llama-30m"),
    Case("rank 128", "llama-30m", _adapter(rank=128)),
    Case("attention only", "llama-30m", _adapter(target_modules="[q_proj,v_proj]")),
    Case("the upper two layers", "llama-30m", _adapter(layers="last:2")),
    Case("dropout 0.1", "llama-30m", _adapter(dropout=0.1)),
    Case("DoRA", "llama-30m", _adapter(dora="true")),
    Case("long rows", "llama-30m", words=1200, at_once=2),
    Case("padded", "llama-30m", _training(batching="padded")),
    Case("packed", "llama-30m", _training(batching="packed") | {"data.max_length_tokens": 1024},
         at_once=2),
    Case("selective", "llama-30m", _training(activation_checkpointing="selective"), at_once=8),
    Case("full", "llama-30m", _training(activation_checkpointing="full"), at_once=8),
    Case("full fine-tuning", "llama-30m", _adapter(method="full")),
    Case("bfloat16", "llama-30m", {"model.dtype": "bfloat16"}),
    Case("190 M, rank 16", "llama-190m"),
    Case("190 M, one row at once", "llama-190m", at_once=1),
    Case("190 M, full", "llama-190m", _training(activation_checkpointing="full")),
    Case("190 M, nf4", "llama-190m", {"model.quantization": "nf4"}),
    Case("190 M, int8", "llama-190m", {"model.quantization": "int8"}, at_once=1),
    Case("190 M, bfloat16", "llama-190m", {"model.dtype": "bfloat16"}, at_once=1),
    Case("190 M, full fine-tuning", "llama-190m", _adapter(method="full"), at_once=1),
    Case("Qwen 3", "qwen3-30m"),
    Case("Qwen 3, selective", "qwen3-30m", _training(activation_checkpointing="selective")),
    Case("Gemma, 128,000 words", "gemma-150m", at_once=2),
    Case("Mixtral", "mixtral-140m", at_once=2),
    Case("Mixtral, attention only", "mixtral-140m", _adapter(target_modules="[q_proj,o_proj]"),
         at_once=2),
    Case("Qwen 3 mixture", "qwen3-moe-130m", at_once=2),
    Case("Qwen 3 mixture, selective", "qwen3-moe-130m",
         _training(activation_checkpointing="selective"), at_once=2),
]


def write_base(name: str, folder: Path) -> Path:
    """A base of random weights with the tokenizer of the embedded one."""
    if folder.exists():
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from lorafit.model.local_files import TINY

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    family, sizes = BASES[name]
    config = AutoConfig.for_model(
        family, **sizes, max_position_embeddings=8192, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(words: int, file: Path, count: int = 64) -> Path:
    """Rows of between half and the whole of `words`, two thirds of them the answer."""
    lines = []
    for number in range(count):
        of_row = words * (count + number) // (2 * count)
        asked, answered = ("the quick fox jumps " * (part // 4) for part in
                           (of_row // 3, of_row - of_row // 3))
        lines.append(json.dumps({"prompt": f"{number} {asked}", "completion": answered}))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def run(case: Case, folder: Path) -> dict[str, Any]:
    """The case's record and result; RuntimeError with its last words where it failed."""
    base = write_base(case.base, folder / "bases" / case.base)
    data = write_rows(case.words, folder / f"rows-{case.words}.jsonl")
    target = folder / "runs" / "".join(c if c.isalnum() else "-" for c in case.name)
    recipe = target.parent / f"{target.name}.yaml"
    target.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(
        f"model: {{base: {base}, dtype: float32}}\ndata: {{train: {data}, max_length_tokens: 2048, "
        f"checks: {{duplicates: allow}}}}\n"
        f"training: {{steps: {STEPS}, batch_size: {case.at_once}, micro_batch_size: {case.at_once}, "
        f"activation_checkpointing: none}}\noutput: {{dir: {target}}}\n", encoding="utf-8")
    settings = [word for key, value in case.settings.items() for word in
                ("--set", f"{key}={value}")]
    done = subprocess.run([sys.executable, "-m", "lorafit", "train", str(recipe), *settings],
                          capture_output=True, text=True, timeout=600, env=dict(os.environ))
    if done.returncode:
        raise RuntimeError(f"{case.name}: {done.stdout[-800:]}{done.stderr[-800:]}")
    found: dict[str, Any] = {"case": case.name, "base": case.base}
    for name in ("record", "result"):
        found[name] = json.loads((target / f"{name}.json").read_text(encoding="utf-8"))
    return found
