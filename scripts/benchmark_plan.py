"""What a plan predicts beside what runs take: memory and seconds a step, over many kinds of run.

    python scripts/benchmark_plan.py                       # all cases, a table
    python scripts/benchmark_plan.py --only nf4 --keep out # some of them; bases and runs stay
    python scripts/benchmark_plan.py --markdown docs/plan-accuracy.md

Each case is a process of its own: `lorafit train` on a shrunken base of random weights, for a few
steps. Predicted is what the run wrote into its record before its first step; measured is what it
wrote into its result. No figure is measured again because it did not please.

On Linux the C library keeps blocks that were freed, the more of them
the more steps differ in shape: the peak of a process is then above what its tensors take, by up to
two fifths here. Runs are told to give blocks of a mebibyte back, as allocators of GPUs count them;
`--default-allocator` leaves that out.
"""

import argparse
import json
import os
import shutil
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
STEPS = 6


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


def run(case: Case, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """The case's record and result; RuntimeError with its last words where it failed."""
    base = write_base(case.base, folder / "bases" / case.base)
    data = write_rows(case.words, folder / f"rows-{case.words}.jsonl")
    target = folder / "runs" / "".join(c if c.isalnum() else "-" for c in case.name)
    recipe = target.parent / f"{target.name}.yaml"
    target.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(
        f"model: {{base: {base}, dtype: float32}}\n"
        f"data: {{train: {data}, max_length_tokens: 2048, checks: {{duplicates: allow}}}}\n"
        f"training: {{steps: {STEPS}, batch_size: {case.at_once}, "
        f"micro_batch_size: {case.at_once}, activation_checkpointing: none}}\n"
        f"output: {{dir: {target}}}\n", encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    settings = [word for key, value in case.settings.items() for word in
                ("--set", f"{key}={value}")]
    done = subprocess.run([sys.executable, "-m", "lorafit", "train", str(recipe), *settings],
                          capture_output=True, text=True, timeout=600, env=os.environ | environment)
    if done.returncode:
        raise RuntimeError(f"{case.name}: {done.stdout[-800:]}{done.stderr[-800:]}")
    found: dict[str, Any] = {"case": case.name, "base": case.base}
    for name in ("record", "result"):
        found[name] = json.loads((target / f"{name}.json").read_text(encoding="utf-8"))
    return found


def calibrate(folder: Path, environment: dict[str, str], cases: Sequence[Case]) -> None:
    """Measure this device, as a person does once, in each number format of the cases."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "calibration.yaml"
    data = write_rows(100, folder / "rows-100.jsonl")
    recipe.write_text(f"model: {{base: tiny, dtype: float32}}\ndata: {{train: {data}}}\n"
                      f"output: {{dir: {folder / 'none'}}}\n", encoding="utf-8")
    formats = {tuple((key, str(value)) for key, value in case.settings.items()
                     if key in ("model.dtype", "model.quantization")) for case in cases}
    for settings in sorted(formats):
        words = [word for key, value in settings for word in ("--set", f"{key}={value}")]
        done = subprocess.run(
            [sys.executable, "-m", "lorafit", "plan", str(recipe), "--calibrate", *words],
            capture_output=True, text=True, timeout=600, env=os.environ | environment)
        said = [line for line in done.stdout.splitlines() if line.startswith("time")]
        print(f"calibrated{''.join(f' {value}' for _, value in settings)}:",
              *(said or [done.stderr[-500:]]), flush=True)


@dataclass(frozen=True)
class Row:
    """Bytes and seconds of a case. Seconds are None where the device was never measured."""

    case: str
    base: str
    predicted_bytes: int
    measured_bytes: int
    predicted_s: float | None
    measured_s: float | None

    @property
    def memory_error(self) -> float:
        return self.predicted_bytes / self.measured_bytes - 1

    @property
    def time_error(self) -> float | None:
        if self.predicted_s is None or self.measured_s is None:
            return None
        return self.predicted_s / self.measured_s - 1


def row_of(found: dict[str, Any]) -> Row:
    told, result = found["record"]["predicted"], found["result"]
    return Row(found["case"], found["base"], told["peak_memory_bytes"],
               result["peak_memory_bytes"], told["step_s"], result["step_s"])


def table(rows: list[Row]) -> str:
    """Markdown: a line a case, then median and worst."""
    lines = ["| case | base | memory, GB | predicted | error | s a step | predicted | error |",
             "|---|---|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        time = ["", "", ""] if row.time_error is None else [
            f"{row.measured_s:.2f}", f"{row.predicted_s:.2f}", f"{row.time_error:+.0%}"]
        lines.append(f"| {row.case} | {row.base} | {row.measured_bytes / 1e9:.2f} | "
                     f"{row.predicted_bytes / 1e9:.2f} | {row.memory_error:+.1%} | "
                     + " | ".join(time) + " |")
    for what, errors in (("memory", [abs(row.memory_error) for row in rows]),
                         ("time", [abs(row.time_error) for row in rows
                                   if row.time_error is not None])):
        if errors:
            lines.append(f"\n{what.capitalize()}: median error {statistics.median(errors):.1%}, "
                         f"worst {max(errors):.1%}, of {len(errors)} cases.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--keep", type=Path, help="directory for bases and runs, which stay")
    parser.add_argument("--markdown", type=Path, help="also write the table to this page")
    parser.add_argument("--default-allocator", action="store_true",
                        help="let the C library keep freed blocks, as it does by itself")
    options = parser.parse_args()
    environment = {} if options.default_allocator else {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    rows, failed = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        cases = [case for case in CASES if options.only is None or options.only in case.name]
        # Measured anew, under the same allocator, and kept for this script alone.
        environment["LORAFIT_CACHE"] = str(folder / "cache")
        calibrate(folder, environment, cases)
        for case in cases:
            try:
                rows.append(row_of(run(case, folder, environment)))
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                failed.append(str(error))
                print(error, file=sys.stderr, flush=True)
                continue
            print(table(rows[-1:]).splitlines()[2], flush=True)
    print(table(rows))
    if options.markdown is not None:
        text = options.markdown.read_text(encoding="utf-8")
        head = text.partition("| case |")[0]
        options.markdown.write_text(head + table(rows) + "\n", encoding="utf-8")
    if failed:
        sys.exit(f"{len(failed)} cases failed")


if __name__ == "__main__":
    main()
