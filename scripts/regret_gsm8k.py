"""Regret of LoRA on GSM8K, on a base that has learnt its kind of text: docs/regret-gsm8k.md.

    python scripts/regret_gsm8k.py GSM8K_DIRECTORY OUTPUT_DIRECTORY

GSM8K_DIRECTORY holds train.jsonl and test.jsonl (rows of question and answer). A model that must
learn new features from nothing tells little of fine-tuning. So the embedded base is first trained
in full on the first half of the training rows for a while, and merged into a base of its own;
regret is measured on the other half. Started again, it goes on where it was.
"""

import subprocess
import sys
from pathlib import Path

import yaml

BASE_STEPS, BASE_RATE = 200, 2e-3
STEPS, BATCH_SIZE, HELD_OUT_ROWS = 24, 8, 80
RANKS, SEEDS = "1,16", 3
MODEL = {"base": "tiny"}
DATA = {"format": "prompt_completion", "max_length_tokens": 256, "on_long": "drop"}


def lorafit(*arguments: str) -> None:
    print("$ lorafit", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "lorafit", *arguments], check=True)


def main(source: Path, output: Path, *options: str) -> None:
    """Halves, a base, a study. options: further ones of `lorafit regret`, such as --budget 25m."""
    output.mkdir(parents=True, exist_ok=True)
    lines = (source / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    half = len(lines) // 2
    (output / "first.jsonl").write_text("".join(lines[:half]), encoding="utf-8")
    (output / "second.jsonl").write_text("".join(lines[half:]), encoding="utf-8")
    test = str(source.absolute() / "test.jsonl")
    base, run = output / "base", output / "base-run"
    if not base.exists():
        recipe = write_recipe(output / "base.yaml", {
            "model": MODEL, "adapter": {"method": "full"},
            "data": {**DATA, "train": str(output / "first.jsonl"), "eval": test,
                     "max_eval_rows": HELD_OUT_ROWS},
            "training": {"steps": BASE_STEPS, "batch_size": BATCH_SIZE, "learning_rate": BASE_RATE,
                         "schedule": "cosine", "warmup": 10, "eval_every": BASE_STEPS},
            "output": {"dir": str(run)}})
        lorafit("train", str(recipe), "--auto-resume")
        lorafit("merge", str(run), "-o", str(base))
    recipe = write_recipe(output / "gsm8k.yaml", {
        "model": {"base": str(base)}, "adapter": {"rank": 16, "alpha": 32},
        "data": {**DATA, "train": str(output / "second.jsonl"), "eval": test,
                 "max_eval_rows": HELD_OUT_ROWS},
        "training": {"steps": STEPS, "batch_size": BATCH_SIZE},
        "output": {"dir": str(output / "gsm8k")}})
    lorafit("regret", str(recipe), "--ranks", RANKS, "--seeds", str(SEEDS),
            "-o", str(output / "regret"), *options)


def write_recipe(path: Path, values: dict[str, object]) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute(), *sys.argv[3:])
