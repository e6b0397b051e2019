"""ms-swift: `swift sft …`.

Its packing and padding-free batches ask for FlashAttention, so on a CPU it pads. Its ChatML ends a
conversation with a line break after the end of turn, which the other tools' rows do not have: a
plugin of three lines registers the template without.

Default: padded, activations recomputed. Best: rows of similar length together, so that little is
padded, and nothing recomputed.
"""

from functools import partial
from pathlib import Path

from environment import Environment

from peers.peer import Peer, Start, Work

ENVIRONMENT = Environment("swift", ("ms-swift==4.6.0",),
                          without=("torchvision", "torchaudio", "triton"))
PLUGIN = """\
from swift.template import TemplateMeta, register_template

register_template(TemplateMeta(
    "chatml_without_line_break", prefix=[], suffix=["<|im_end|>"], chat_sep=["<|im_end|>\\n"],
    prompt=["<|im_start|>user\\n{{QUERY}}<|im_end|>\\n<|im_start|>assistant\\n"],
    system_prefix=["<|im_start|>system\\n{{SYSTEM}}<|im_end|>\\n"]))
"""


def write(work: Work, folder: Path, best: bool) -> Start:
    plugin = folder / "chatml_without_line_break.py"
    plugin.write_text(PLUGIN)
    options = {
        "model": work.model, "model_type": "llama", "template": "chatml_without_line_break",
        "external_plugins": plugin, "torch_dtype": "float32", "bf16": "false", "fp16": "false",
        "tuner_type": "lora", "lora_rank": work.rank, "lora_alpha": work.alpha,
        "lora_dropout": 0, "target_modules": "all-linear", "dataset": work.rows,
        "dataset_shuffle": "false", "train_dataloader_shuffle": "false",
        "split_dataset_ratio": 0, "max_length": 2048, "num_train_epochs": 1,
        "per_device_train_batch_size": work.batch, "gradient_accumulation_steps": 1,
        "learning_rate": work.learning_rate, "lr_scheduler_type": "constant", "warmup_ratio": 0,
        "weight_decay": 0, "max_grad_norm": work.max_grad_norm, "seed": work.seed,
        "adam_beta2": 0.999, "output_dir": folder / "run", "save_strategy": "no",
        "eval_strategy": "no", "logging_steps": 1, "report_to": "none", "use_cpu": "true",
        "dataloader_num_workers": 0, "use_hf": "true",
    }
    if best:
        # It groups shuffled rows only.
        options |= {"gradient_checkpointing": "false", "group_by_length": "true",
                    "train_dataloader_shuffle": "true"}
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return Start(["-m", "swift.cli.sft", *arguments],
                 environment={"MODELSCOPE_CACHE": str(folder / "modelscope")})


PEERS = [
    Peer("swift", "ms-swift", "ms-swift", "default", "padded", ENVIRONMENT,
         partial(write, best=False)),
    Peer("swift-best", "ms-swift", "ms-swift", "best", "padded, grouped by length", ENVIRONMENT,
         partial(write, best=True), ordered=False),
]
