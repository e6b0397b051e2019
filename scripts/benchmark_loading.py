"""What the ranks of one machine hold of a base, while it is loaded and while they train.

    python scripts/benchmark_loading.py [--quick] [--only WORDS]

Trains two steps of a random base of about 400 MB (bfloat16 on disk) on the CPU, alone and on two
and four ranks, replicated and sharded, and adds up what /proc/PID/smaps_rollup says of the ranks:
PSS counts a page that n processes map as 1/n in each, USS counts only what a process has alone.
Linux only. Printed are ratios to the bytes of the weights as the recipe holds them, after what the
same ranks take with the embedded base was subtracted: libraries, data, buffers of communication.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.model.local_files import TINY
from lorafit.run_dir import RunDir

EVERY_S = 0.05
LIMIT_S = 900.0


@dataclass(frozen=True)
class Held:
    """A way to hold a base. parts: bytes of a weight, by what it is stored in."""

    name: str
    base: str
    model: dict[str, Any]
    bytes_a_weight: float


@dataclass(frozen=True)
class Spread:
    ranks: int
    strategy: str

    @property
    def name(self) -> str:
        return f"{self.strategy} {self.ranks}" if self.ranks > 1 else "1 process"


@dataclass(frozen=True)
class Memory:
    """Bytes of all ranks together: PSS and USS at the highest sum of PSS, and in training."""

    peak_pss: float
    peak_uss: float
    pss: float
    uss: float

    def less(self, other: "Memory") -> "Memory":
        return Memory(self.peak_pss - other.peak_pss, self.peak_uss - other.peak_uss,
                      self.pss - other.pss, self.uss - other.uss)


HELD = (
    Held("bfloat16, as on disk", "llama", {"dtype": "bfloat16"}, 2),
    Held("float32, wider than on disk", "llama", {"dtype": "float32"}, 4),
    Held("nf4, quantised here", "llama", {"dtype": "bfloat16", "quantization": "nf4"}, 0.52),
    Held("experts stacked, bfloat16", "qwen3_moe", {"dtype": "bfloat16"}, 2),
)
SPREADS = (Spread(1, "single"), Spread(2, "ddp"), Spread(2, "fsdp"), Spread(4, "ddp"),
           Spread(4, "fsdp"))


def make_base(kind: str, folder: Path) -> tuple[str, int]:
    """A random base of about 200 million weights in bfloat16, and how many it has."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = folder / kind
    own = ({"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16}
           if kind == "llama" else
           {"hidden_size": 512, "intermediate_size": 512, "moe_intermediate_size": 512,
            "num_hidden_layers": 8, "num_experts": 32, "num_experts_per_tok": 2})
    vocabulary = json.loads((TINY / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, num_attention_heads=8,
                                  num_key_value_heads=8, head_dim=64, max_position_embeddings=512,
                                  **own)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (TINY / name).exists():
            shutil.copy(TINY / name, path / name)
    return str(path), sum(p.numel() for p in model.parameters())


def measure(base: str, model: dict[str, Any], spread: Spread, folder: Path) -> Memory:
    """Train two steps, looking at all ranks all the while."""
    run = RunDir(folder / "run")
    shutil.rmtree(run.path, ignore_errors=True)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"A row with a few words, the {n}th."}) + "\n"
                            for n in range(32)), encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps({
        "model": {"base": base, **model}, "adapter": {"rank": 8},
        "data": {"train": str(rows), "workers": 1},
        "training": {"steps": 2, "batch_size": spread.ranks, "micro_batch_size": 1},
        "output": {"dir": str(run.path)}}), encoding="utf-8")
    how = ["--num-processes", str(spread.ranks), "--strategy", spread.strategy] \
        if spread.ranks > 1 else []
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "lorafit", "train", str(recipe), *how], stdout=said, stderr=said,
            env={**os.environ, "OMP_NUM_THREADS": "1", "LORAFIT_DEVICE": "cpu",
                 "LORAFIT_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"})
    samples: list[tuple[bool, int, int]] = []
    ends = time.monotonic() + LIMIT_S
    while process.poll() is None and time.monotonic() < ends:
        found = [seen for pid in _ranks(process.pid, spread.ranks) if (seen := _memory(pid))]
        is_training = run.metrics.exists()
        if len(found) == spread.ranks:
            samples.append((is_training, sum(p for p, _ in found), sum(u for _, u in found)))
        time.sleep(EVERY_S)
    if process.poll() != 0:
        process.kill()
        raise SystemExit(f"{spread.name}: {(folder / 'said').read_text()[-3000:]}")
    peak = max(samples, key=lambda sample: sample[1])
    last = [sample for sample in samples if sample[0]][-1]
    return Memory(peak[1], peak[2], last[1], last[2])


def _ranks(parent: int, ranks: int) -> list[int]:
    """Processes of the ranks: the launched one itself, or its children."""
    if ranks == 1:
        return [parent]
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except OSError:
        return []
    return [int(child) for child in children if _is_rank(child)]


def _is_rank(pid: str) -> bool:
    try:
        return b"\0RANK=" in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _memory(pid: int) -> tuple[int, int] | None:
    """PSS and USS in bytes; None of a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return None
    sizes = {name: int(size.split()[0]) * 1024 for name, _, size in
             (line.partition(":") for line in lines) if size}
    return sizes["Pss"], sizes["Private_Clean"] + sizes["Private_Dirty"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one process and two ranks")
    parser.add_argument("--only", default="", help="part of the name of a way to hold a base")
    arguments = parser.parse_args()
    spreads = [spread for spread in SPREADS if spread.ranks <= 2 or not arguments.quick]
    with tempfile.TemporaryDirectory(prefix="lorafit-loading-") as name:
        folder = Path(name)
        nothing = {spread: measure("tiny", {"dtype": "bfloat16"}, spread, folder)
                   for spread in spreads}
        bases: dict[str, tuple[str, int]] = {}
        print("| base | ranks | peak PSS | peak USS | PSS in training | USS in training |\n"
              "|---|---|---|---|---|---|", flush=True)
        for held in HELD:
            if arguments.only not in held.name:
                continue
            if held.base not in bases:
                bases[held.base] = make_base(held.base, folder)
            path, weights = bases[held.base]
            size = weights * held.bytes_a_weight
            for spread in spreads:
                found = measure(path, held.model, spread, folder).less(nothing[spread])
                ratios = " | ".join(f"{each / size:.2f}" for each in (
                    found.peak_pss, found.peak_uss, found.pss, found.uss))
                print(f"| {held.name} ({size / 1e6:,.0f} MB) | {spread.name} | {ratios} |",
                      flush=True)


if __name__ == "__main__":
    main()
