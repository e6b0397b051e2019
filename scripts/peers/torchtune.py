"""torchtune: `tune run lora_finetune_single_device --config config.yaml`, its own recipe.

torchtune builds its models itself: a Llama 3.2 of this size, with tied embeddings and without the
scaling of the rotary frequencies, loads the same weights. It needs three small parts, named in the
configuration and found in this file: the tokenizer, the rows as a data set, and a constant learning
rate. The recipe's loss in chunks is its default and computes what the others compute.

Default: padded, activations kept. Best: `PackedDataset`, which packs rows in their order.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from environment import Environment

from peers.peer import Peer, Start, Work

# torchtune does not say which torchao it wants; later ones have lost what it imports.
ENVIRONMENT = Environment("torchtune", ("torchtune==0.6.1",), also=("torchao==0.10.0",),
                          without=("torchvision", "torchaudio", "triton"))
# Packed, in a step. It packs rows in their order, so short sequences would stay half empty.
SEQUENCES = 2


def write(work: Work, folder: Path, packed: bool) -> Start:
    model = json.loads((work.model / "config.json").read_text())
    config = {
        "output_dir": str(folder / "run"),
        "model": {
            "_component_": "torchtune.models.llama3_2.lora_llama3_2",
            "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
            "apply_lora_to_mlp": True, "lora_rank": work.rank, "lora_alpha": work.alpha,
            "lora_dropout": 0.0, "vocab_size": model["vocab_size"],
            "num_layers": model["num_hidden_layers"], "num_heads": model["num_attention_heads"],
            "num_kv_heads": model["num_key_value_heads"], "embed_dim": model["hidden_size"],
            "intermediate_dim": model["intermediate_size"], "norm_eps": model["rms_norm_eps"],
            "max_seq_len": 4096, "rope_base": 10_000, "scale_factor": 1,
        },
        "tokenizer": {"_component_": "peers.torchtune.ChatTokenizer", "path": str(work.model)},
        "checkpointer": {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": str(work.model), "checkpoint_files": ["model.safetensors"],
            "recipe_checkpoint": None, "output_dir": str(folder / "run"),
            "model_type": "LLAMA3_2",
        },
        "resume_from_checkpoint": False, "save_adapter_weights_only": True,
        "dataset": {"_component_": "peers.torchtune.rows", "path": str(work.rows),
                    "packed": packed, "pack_tokens": work.pack_tokens(SEQUENCES)},
        "seed": work.seed, "shuffle": False,
        "batch_size": SEQUENCES if packed else work.batch,
        "optimizer": {"_component_": "torch.optim.AdamW", "fused": True, "weight_decay": 0.0,
                      "lr": work.learning_rate},
        "lr_scheduler": {"_component_": "peers.torchtune.constant"},
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "epochs": 1, "max_steps_per_epoch": None, "gradient_accumulation_steps": 1,
        "clip_grad_norm": work.max_grad_norm, "compile": False,
        "metric_logger": {"_component_": "torchtune.training.metric_logging.DiskLogger",
                          "log_dir": str(folder / "run" / "logs")},
        "log_every_n_steps": 1, "log_peak_memory_stats": False, "device": "cpu",
        "dtype": "fp32", "enable_activation_checkpointing": False,
        "enable_activation_offloading": False,
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config, indent=2))
    return Start(["-m", "torchtune._cli.tune", "run", "lora_finetune_single_device",
                  "--config", str(path)])


class ChatTokenizer:
    """What the recipe asks of a tokenizer: its padding."""

    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(Path(path) / "tokenizer.json"))
        self.pad_id, self.max_seq_len = 0, None

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        encoded = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": encoded.ids}


def rows(tokenizer: ChatTokenizer, path: str, packed: bool, pack_tokens: int) -> Any:
    """The rows. The recipe's loss moves labels by one itself."""
    from torchtune.datasets import PackedDataset

    from peers.work import rendered

    found = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        ids, labels = rendered(json.loads(line), tokenizer)
        found.append({"tokens": ids, "labels": labels})
    if packed:
        return PackedDataset(found, max_seq_len=pack_tokens, padding_idx=tokenizer.pad_id)
    return found


def constant(optimizer: Any, num_training_steps: int, last_epoch: int = -1) -> Any:
    from torch.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, lambda step: 1.0, last_epoch)


PEERS = [
    Peer("torchtune", "torchtune", "torchtune", "default", "padded", ENVIRONMENT,
         partial(write, packed=False)),
    Peer("torchtune-packed", "torchtune", "torchtune", "best", "PackedDataset", ENVIRONMENT,
         partial(write, packed=True), sequences=SEQUENCES),
]
