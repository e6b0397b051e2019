"""TRL's SFTTrainer, in a script as its documentation has it, on prompts and completions.

To run on a CPU: bf16, which is TRL's default, is off. Rows keep their order.

Default: padded, activations recomputed. Best: `padding_free`, and nothing recomputed.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from peers.peer import Peer, Start, Work
from peers.plain import ENVIRONMENT


def settings(work: Work, folder: Path) -> dict[str, Any]:
    """What TRL's and Unsloth's scripts are told. `sft` goes to SFTConfig as it is."""
    return {
        "model": str(work.model), "rows": str(work.rows), "rank": work.rank, "alpha": work.alpha,
        "targets": work.targets, "seed": work.seed,
        "sft": {
            "output_dir": str(folder / "run"), "num_train_epochs": 1,
            "per_device_train_batch_size": work.batch, "gradient_accumulation_steps": 1,
            "learning_rate": work.learning_rate, "lr_scheduler_type": "constant",
            "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": work.max_grad_norm,
            "seed": work.seed, "bf16": False, "use_cpu": True, "logging_steps": 1,
            "report_to": [], "save_strategy": "no", "train_sampling_strategy": "sequential",
        },
    }


def write(work: Work, folder: Path, best: bool) -> Start:
    config = settings(work, folder)
    if best:
        # padding_free wants no length to cut at; no row here is longer than the default of 1024.
        config["sft"] |= {"padding_free": True, "max_length": None,
                          "gradient_checkpointing": False}
    path = folder / "config.json"
    path.write_text(json.dumps(config, indent=2))
    return Start(["-m", "peers.trl", str(path)])


def prompts_and_completions(rows: str) -> Any:
    import datasets

    messages = [json.loads(line)["messages"]
                for line in Path(rows).read_text(encoding="utf-8").splitlines()]
    return datasets.Dataset.from_list(
        [{"prompt": both[:1], "completion": both[1:]} for both in messages])


def count_supervised(trainer: Any, folder: str) -> None:
    """Writes how many tokens the trainer supervises: its loss goes through no torch function."""
    labels = [label for row in trainer.train_dataset
              for label in trainer.data_collator([row])["labels"].flatten().tolist()]
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "supervised.txt").write_text(str(sum(label != -100 for label in labels)))


def supervised(folder: Path) -> int:
    return int((folder / "run" / "supervised.txt").read_text())


def train(config: dict[str, Any]) -> None:
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(config["model"]),
        train_dataset=prompts_and_completions(config["rows"]), args=SFTConfig(**config["sft"]),
        peft_config=LoraConfig(r=config["rank"], lora_alpha=config["alpha"], lora_dropout=0.0,
                               target_modules=config["targets"], task_type="CAUSAL_LM"),
    )
    count_supervised(trainer, config["sft"]["output_dir"])
    trainer.train()


PEERS = [
    Peer("trl", "TRL", "trl", "default", "padded", ENVIRONMENT, partial(write, best=False),
         supervised=supervised),
    Peer("trl-packed", "TRL", "trl", "best", "padding_free", ENVIRONMENT,
         partial(write, best=True), supervised=supervised),
]

if __name__ == "__main__":
    train(json.loads(Path(sys.argv[1]).read_text()))
