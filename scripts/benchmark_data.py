"""Tokenising and masking: lorafit beside `datasets.map` with `apply_chat_template`, and beside TRL.

    python scripts/benchmark_data.py GSM8K_TRAIN.jsonl [--rows 200000] [--runs 3]

The rows of a GSM8K file (columns question and answer) are repeated to `--rows` conversations, each
made different by its number. Each side reads the same JSON lines in a process of its own with the
embedded tokenizer, whose template has generation marks, on as many processes as there are cores,
and must end with the same number of tokens and of supervised tokens. Time is from the open file to
tokens on disk, without imports and the loading of the tokenizer; memory is the sum over the
processes of what is theirs alone and not a mapped file (anonymous memory, shared pages counted
once). TRL's time is that of constructing SFTTrainer, which prepares the data, less the same with
100 rows. `pip install trl` for the last side.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SAMPLE_EVERY_S = 0.1


def lorafit_side(path: Path, folder: Path) -> dict[str, Any]:
    os.environ["LORAFIT_CACHE"] = str(folder)
    from lorafit.data.dataset import read_data
    from lorafit.recipe.schema import Data

    tokenizer = load_tokenizer()
    data = Data(train=str(path), checks={"duplicates": "allow"})
    started = time.perf_counter()
    rows, _ = read_data(data, tokenizer, seed=0)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    read_data(data, tokenizer, seed=0)
    report = rows.report
    return {"seconds": seconds, "again_s": time.perf_counter() - started, "tokens": report.tokens,
            "supervised": report.supervised_tokens}


def datasets_side(path: Path, folder: Path) -> dict[str, Any]:
    import datasets

    datasets.disable_progress_bars()
    tokenizer = load_tokenizer()

    def tokenise(row: dict[str, Any]) -> dict[str, Any]:
        out = tokenizer.apply_chat_template(row["messages"], return_dict=True,
                                            return_assistant_tokens_mask=True)
        return {"input_ids": out["input_ids"], "assistant_masks": out["assistant_masks"]}

    started = time.perf_counter()
    table = datasets.load_dataset("json", data_files=str(path), split="train",
                                  cache_dir=str(folder))
    table = table.map(tokenise, remove_columns=["messages"], num_proc=os.cpu_count())
    seconds = time.perf_counter() - started
    return {"seconds": seconds, **totals(table, "assistant_masks")}


def trl_side(path: Path, folder: Path) -> dict[str, Any]:
    import datasets
    import torch
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    from lorafit.model.base import TINY

    datasets.disable_progress_bars()
    tokenizer = load_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)

    def prepare(rows: int | None) -> tuple[float, Any]:
        started = time.perf_counter()
        table = datasets.load_dataset("json", data_files=str(path), split="train",
                                      cache_dir=str(folder / str(rows)))
        if rows is not None:
            table = table.select(range(rows))
        trainer = SFTTrainer(
            model=model, processing_class=tokenizer, train_dataset=table,
            args=SFTConfig(output_dir=str(folder / "run"), report_to=[], use_cpu=True, bf16=False,
                           assistant_only_loss=True, max_length=None, packing=False,
                           dataset_num_proc=os.cpu_count()))
        return time.perf_counter() - started, trainer.train_dataset

    seconds, table = prepare(None)
    with_few, _ = prepare(100)
    loading = time.perf_counter()
    datasets.load_dataset("json", data_files=str(path), split="train",
                          cache_dir=str(folder / "once more"))
    loading = time.perf_counter() - loading
    return {"seconds": seconds - (with_few - loading), **totals(table, "labels")}


SIDES = {"lorafit": lorafit_side, "datasets": datasets_side, "trl": trl_side}


def load_tokenizer() -> Any:
    from transformers import AutoTokenizer

    from lorafit.model.base import TINY

    return AutoTokenizer.from_pretrained(TINY)


def totals(table: Any, mask: str) -> dict[str, int]:
    """Tokens of an Arrow table, and how many of them a mask (or a label) chooses."""
    import pyarrow.compute as pc

    chosen = pc.list_flatten(table.data[mask])
    chosen = pc.not_equal(chosen, -100) if mask == "labels" else pc.equal(chosen, 1)
    return {"tokens": pc.sum(pc.list_value_length(table.data["input_ids"])).as_py(),
            "supervised": pc.sum(chosen).as_py()}


def write_rows(source: Path, rows: int, target: Path) -> None:
    lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    with target.open("w", encoding="utf-8") as file:
        for number in range(rows):
            line = lines[number % len(lines)]
            file.write(json.dumps({"messages": [
                {"role": "user", "content": f"{number}: {line['question']}"},
                {"role": "assistant", "content": line["answer"]},
            ]}) + "\n")


class Memory(threading.Thread):
    """Watches a process and its descendants; `peak_bytes` is the most anonymous memory of all."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak_bytes, self.done = pid, 0, False

    def run(self) -> None:
        while not self.done:
            self.peak_bytes = max(self.peak_bytes, sum(map(anonymous_bytes, family(self.pid))))
            time.sleep(SAMPLE_EVERY_S)


def family(pid: int) -> list[int]:
    found = [pid]
    for process in found:
        try:
            for task in Path(f"/proc/{process}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that is no file's; what it shares with others counts in part."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))


def measure(side: str, path: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        process = subprocess.Popen([sys.executable, __file__, "--one", side, str(path), folder],
                                   stdout=subprocess.PIPE, text=True)
        memory = Memory(process.pid)
        memory.start()
        out, _ = process.communicate()
        memory.done = True
        if process.returncode:
            sys.exit(f"{side} failed")
        return {**json.loads(out.splitlines()[-1]), "peak_bytes": memory.peak_bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--sides", default="lorafit,datasets,trl")
    parser.add_argument("--runs", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-rows-") as folder:
        results: dict[str, list[dict[str, Any]]] = {}
        for rows in (arguments.rows // 10, arguments.rows):
            path = Path(folder) / f"{rows}.jsonl"
            write_rows(arguments.source, rows, path)
            for _ in range(arguments.runs):
                for side in arguments.sides.split(","):
                    result = measure(side, path)
                    results.setdefault(f"{side} {rows}", []).append(result)
                    print(f"{rows:>9,} rows  {side:<9} {result['seconds']:8.1f} s  "
                          f"{result['tokens'] / result['seconds']:>12,.0f} tokens/s  "
                          f"{result['peak_bytes'] / 2**20:8,.0f} MiB  "
                          f"{result['supervised']:,} of {result['tokens']:,} tokens supervised"
                          + (f"  again {result['again_s']:.2f} s" if "again_s" in result else ""),
                          flush=True)
            counts = {(result["tokens"], result["supervised"])
                      for name, found in results.items() if name.endswith(f" {rows}")
                      for result in found}
            assert len(counts) == 1, f"the sides differ: {counts}"
            assert min(counts)[1] > 0
    best = {name: min(result["seconds"] for result in found) for name, found in results.items()}
    for side in arguments.sides.split(","):
        ratio = best[f"{side} {arguments.rows}"] / best[f"lorafit {arguments.rows}"] \
            if f"lorafit {arguments.rows}" in best else float("nan")
        growth = [max(result["peak_bytes"] for result in results[f"{side} {rows}"])
                  for rows in (arguments.rows // 10, arguments.rows)]
        print(f"{side:<9} {ratio:5.2f} × lorafit's time; ten times the rows take "
              f"{growth[1] / growth[0]:.2f} × the memory")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(SIDES[sys.argv[2]](Path(sys.argv[3]), Path(sys.argv[4]))))
    else:
        main()
