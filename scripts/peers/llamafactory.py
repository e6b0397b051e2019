"""LLaMA-Factory: `llamafactory-cli train config.yaml`.

To run on a CPU: torchaudio, which it imports for audio, and torchvision are left out, since those
of the package index belong to another build of torch; an empty module stands in for the first. Its
own check of versions is off, because it would miss them. The chat template is the tokenizer's,
which it parses where no template is named.

Default: padded, activations recomputed. Best: `neat_packing`, and nothing recomputed.
"""

import json
from functools import partial
from pathlib import Path

from environment import Environment

from peers.peer import Peer, Start, Work

ENVIRONMENT = Environment("llamafactory", ("llamafactory==0.9.5",),
                          without=("torchaudio", "torchvision", "triton"))
# Packed, in a step. Attention costs the square of their length; shorter ones are filled less well.
SEQUENCES = 4


def write(work: Work, folder: Path, packed: bool) -> Start:
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {
        "file_name": str(work.rows), "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
                 "assistant_tag": "assistant"}}}))
    config = {
        "model_name_or_path": str(work.model), "stage": "sft", "do_train": True,
        "finetuning_type": "lora", "lora_rank": work.rank, "lora_alpha": work.alpha,
        "lora_dropout": 0.0, "lora_target": "all",
        "dataset_dir": str(folder), "dataset": "rows", "cutoff_len": 4096,
        "disable_shuffling": True, "overwrite_cache": True,
        "per_device_train_batch_size": work.batch, "gradient_accumulation_steps": 1,
        "num_train_epochs": 1, "learning_rate": work.learning_rate,
        "lr_scheduler_type": "constant", "warmup_ratio": 0.0, "weight_decay": 0.0,
        "max_grad_norm": work.max_grad_norm, "seed": work.seed, "use_cpu": True,
        "output_dir": str(folder / "run"), "save_strategy": "no", "logging_steps": 1,
        "report_to": "none",
    }
    if packed:
        # A packed sequence is one token longer than cutoff_len.
        config |= {"packing": True, "neat_packing": True, "cutoff_len": work.pack_tokens(SEQUENCES),
                   "per_device_train_batch_size": SEQUENCES,
                   "disable_gradient_checkpointing": True}
    path = folder / "config.yaml"
    path.write_text(json.dumps(config, indent=2))
    return Start(["-m", "llamafactory.cli", "train", str(path)],
                 environment={"DISABLE_VERSION_CHECK": "1", "PEERS_STUBS": "torchaudio"})


PEERS = [
    Peer("llamafactory", "LLaMA-Factory", "llamafactory", "default", "padded", ENVIRONMENT,
         partial(write, packed=False)),
    Peer("llamafactory-packed", "LLaMA-Factory", "llamafactory", "best", "neat_packing",
         ENVIRONMENT, partial(write, packed=True), sequences=SEQUENCES),
]
