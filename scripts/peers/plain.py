"""A plain loop on transformers and peft, as one writes it by hand: padded to the longest of 8."""

import json
import sys
from pathlib import Path
from typing import Any

from environment import Environment

from peers.peer import Peer, Start, Work

# TRL adds nothing that a plain loop does not have, so both run in this environment.
ENVIRONMENT = Environment("hf", ("trl==1.16.0", "transformers==5.23.0", "peft==0.21.2"))


def write(work: Work, folder: Path) -> Start:
    config = folder / "config.json"
    config.write_text(json.dumps({
        "model": str(work.model), "rows": str(work.rows), "batch": work.batch,
        "rank": work.rank, "alpha": work.alpha, "targets": work.targets,
        "learning_rate": work.learning_rate, "max_grad_norm": work.max_grad_norm,
        "seed": work.seed}))
    return Start(["-m", "peers.plain", str(config)])


def train(config: dict[str, Any]) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from peers.work import rendered

    torch.manual_seed(config["seed"])
    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    base = AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(
        r=config["rank"], lora_alpha=config["alpha"], lora_dropout=0.0,
        target_modules=config["targets"], task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad],
                                  lr=config["learning_rate"], weight_decay=0.0)
    rows = [rendered(json.loads(line), tokenizer)
            for line in Path(config["rows"]).read_text(encoding="utf-8").splitlines()]
    model.train()
    for begin in range(0, len(rows), config["batch"]):
        batch = rows[begin:begin + config["batch"]]
        longest = max(len(ids) for ids, _ in batch)

        def padded(parts: list[list[int]], value: int, longest: int = longest) -> torch.Tensor:
            return torch.tensor([part + [value] * (longest - len(part)) for part in parts])

        loss = model(
            input_ids=padded([ids for ids, _ in batch], tokenizer.pad_token_id),
            attention_mask=padded([[1] * len(ids) for ids, _ in batch], 0),
            labels=padded([labels for _, labels in batch], -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        print(f"loss {float(loss.detach()):.4f}", flush=True)


PEERS = [Peer("plain", "plain loop", "transformers", "default", "transformers + peft, padded",
              ENVIRONMENT, write)]

if __name__ == "__main__":
    train(json.loads(Path(sys.argv[1]).read_text()))
