"""Greedy answers of mlx-lm. See engines/engine.py for the two files."""

import json
import sys
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_adapters, load_model


def load(base: str, adapter: str | None = None) -> Any:
    model, _ = load_model(Path(base))
    return model if adapter is None else load_adapters(model, adapter)


def answers(model: Any, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    model.eval()
    return [[int(token) for token, _ in islice(
        generate_step(mx.array(prompt), model, max_tokens=new_tokens), new_tokens)]
        for prompt in prompts]


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
        "engine": f"mlx-lm {version('mlx-lm')}, mlx {version('mlx')}",
        "how": "mlx_lm's load_model, load_adapters and generate_step"}))


if __name__ == "__main__":
    main()
