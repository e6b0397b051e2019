"""Unsloth: FastLanguageModel with TRL's SFTTrainer, as its notebooks have it.

On a machine without an accelerator Unsloth chooses its CPU backend by itself; that turns packing
and padding-free batches off. Left out: xformers, tied to one build of torch, and torchvision.

Default: padded, activations recomputed. Best: rows of similar length together, so that little is
padded, and nothing recomputed.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from environment import Environment

from peers.peer import Peer, Start, Work
from peers.trl import count_supervised, prompts_and_completions, settings, supervised

ENVIRONMENT = Environment(
    "unsloth", ("unsloth==2026.10.9", "unsloth_zoo==2026.10.9"),
    without=("xformers", "torchvision", "torchaudio", "diffusers"))


def write(work: Work, folder: Path, best: bool) -> Start:
    config = {**settings(work, folder), "recompute": False if best else "unsloth"}
    if best:
        config["sft"] |= {"gradient_checkpointing": False,
                          "train_sampling_strategy": "group_by_length"}
    path = folder / "config.json"
    path.write_text(json.dumps(config, indent=2))
    return Start(["-m", "peers.unsloth", str(path)],
                 environment={"UNSLOTH_DISABLE_STATISTICS": "1"})


def train(config: dict[str, Any]) -> None:
    import torch
    from unsloth import FastLanguageModel  # before trl and transformers, which it alters

    from trl import SFTConfig, SFTTrainer  # isort: skip

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=config["model"], max_seq_length=2048, dtype=torch.float32, load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(
        model, r=config["rank"], lora_alpha=config["alpha"], lora_dropout=0.0,
        target_modules=config["targets"], use_gradient_checkpointing=config["recompute"],
        random_state=config["seed"])
    trainer = SFTTrainer(
        model=model, processing_class=tokenizer,
        train_dataset=prompts_and_completions(config["rows"]), args=SFTConfig(**config["sft"]),
    )
    count_supervised(trainer, config["sft"]["output_dir"])
    trainer.train()


PEERS = [
    Peer("unsloth", "Unsloth", "unsloth", "default", "padded", ENVIRONMENT,
         partial(write, best=False), supervised=supervised),
    Peer("unsloth-best", "Unsloth", "unsloth", "best", "padded, grouped by length", ENVIRONMENT,
         partial(write, best=True), ordered=False, supervised=supervised),
]

if __name__ == "__main__":
    train(json.loads(Path(sys.argv[1]).read_text()))
