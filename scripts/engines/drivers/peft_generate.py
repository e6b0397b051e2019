"""Greedy answers of transformers and peft. See engines/engine.py for the two files."""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def load(base: str, adapter: str | None = None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()


@torch.inference_mode()
def answers(model: Any, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    given = []
    for prompt in prompts:
        out = model.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)),
            min_new_tokens=new_tokens, max_new_tokens=new_tokens, do_sample=False,
            eos_token_id=None, pad_token_id=0)
        given.append(out[0, len(prompt):].tolist())
    return given


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    prompts, new_tokens = request["prompts"], request["new_tokens"]
    found = {}
    for name, path in request["adapters"].items():
        found[name] = answers(load(request["base"], path), prompts, new_tokens)
    for name, path in request["merged"].items():
        found[f"merged:{name}"] = answers(load(path), prompts, new_tokens)
    Path(sys.argv[2]).write_text(json.dumps({
        "answers": found, "base": answers(load(request["base"]), prompts, new_tokens),
        "engine": f"peft {version('peft')}, transformers {version('transformers')}",
        "how": "PeftModel.from_pretrained, AutoModelForCausalLM.from_pretrained, generate"}))


if __name__ == "__main__":
    main()
