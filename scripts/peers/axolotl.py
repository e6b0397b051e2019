"""axolotl: `axolotl train config.yaml --launcher python`.

To run on a CPU: its Triton kernels for LoRA are off (they are on by default and need a GPU), and
the launcher is plain Python. xformers, which is tied to one build of torch, and the packages
for cloud storage, evaluation suites and web pages are not installed.

Default: padded. Best: `sample_packing`.
"""

import json
from functools import partial
from pathlib import Path

from environment import Environment

from peers.peer import Peer, Start, Work

ENVIRONMENT = Environment(
    "axolotl", ("axolotl==0.19.0",),
    without=("xformers", "torchvision", "torchaudio", "modal", "ocifs", "adlfs", "gcsfs", "s3fs",
             "lm-eval", "gradio", "trackio"))
# Packed, in a step. Attention costs the square of their length; shorter ones are filled less well.
SEQUENCES = 4


def write(work: Work, folder: Path, packed: bool) -> Start:
    config = {
        "base_model": str(work.model), "model_type": "AutoModelForCausalLM",
        "tokenizer_type": "AutoTokenizer",
        "adapter": "lora", "lora_r": work.rank, "lora_alpha": work.alpha, "lora_dropout": 0.0,
        "lora_target_linear": True,
        "lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False,
        "datasets": [{"path": str(work.rows), "ds_type": "json", "type": "chat_template",
                      "field_messages": "messages", "roles_to_train": ["assistant"],
                      "train_on_eos": "turn"}],
        "chat_template": "tokenizer_default", "dataset_prepared_path": str(folder / "prepared"),
        "val_set_size": 0, "shuffle_merged_datasets": False,
        "shuffle_before_merging_datasets": False,
        # Its name for a sampler that keeps the rows' order.
        "curriculum_sampling": True,
        "sequence_len": 1024 if work.longest_tokens <= 1024 else 4096, "sample_packing": False,
        "micro_batch_size": work.batch, "gradient_accumulation_steps": 1, "num_epochs": 1,
        "optimizer": "adamw_torch", "learning_rate": work.learning_rate,
        "lr_scheduler": "constant", "warmup_steps": 0, "weight_decay": 0.0,
        "max_grad_norm": work.max_grad_norm, "seed": work.seed,
        "bf16": False, "fp16": False, "tf32": False, "attn_implementation": "sdpa",
        "output_dir": str(folder / "run"), "save_strategy": "no", "logging_steps": 1,
        "use_tensorboard": False, "dataset_num_proc": 1, "dataloader_num_workers": 0,
    }
    if packed:
        config |= {"sample_packing": True, "sequence_len": work.pack_tokens(SEQUENCES),
                   "micro_batch_size": SEQUENCES, "sample_packing_sequentially": False}
    path = folder / "config.yaml"
    path.write_text(json.dumps(config, indent=2))
    return Start(["-m", "axolotl.cli.main", "train", str(path), "--launcher", "python"],
                 environment={"AXOLOTL_DO_NOT_TRACK": "1"})


PEERS = [
    Peer("axolotl", "axolotl", "axolotl", "default", "padded", ENVIRONMENT,
         partial(write, packed=False)),
    Peer("axolotl-packed", "axolotl", "axolotl", "best", "sample_packing", ENVIRONMENT,
         partial(write, packed=True), sequences=SEQUENCES),
]
