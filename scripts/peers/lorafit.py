"""lorafit at its defaults, but for checkpoints: one at the end, since the other tools save none."""

import json
from pathlib import Path
from typing import Any

from peers.peer import Peer, Start, Work


def write(work: Work, folder: Path) -> Start:
    recipe = {
        "model": {"base": str(work.model), "dtype": "float32"},
        "adapter": {"rank": work.rank, "alpha": work.alpha, "target_modules": "all-linear"},
        "data": {"train": str(work.rows), "format": "chat", "max_length_tokens": 4096},
        "training": {
            "steps": work.steps, "batch_size": work.batch, "learning_rate": work.learning_rate,
            "max_grad_norm": work.max_grad_norm, "seed": work.seed,
            "checkpoint_every": work.steps,
        },
        "output": {"dir": str(folder / "run")},
    }
    # JSON is YAML.
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=2))
    # Its cache of tokenised rows would make a second run's start look faster than a first one's.
    return Start(["train", str(path)], own=True,
                 environment={"LORAFIT_CACHE": str(folder / "cache")})


def metrics(folder: Path) -> list[dict[str, Any]]:
    """lorafit computes its loss by a function of its own; its metrics have it for every step."""
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "grad_norm" in line]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder)]


def supervised(folder: Path) -> int:
    return sum(line["supervised_tokens"] for line in metrics(folder))


PEERS = [Peer("lorafit", "lorafit", "lorafit", "default", "", None, write, ordered=False,
              losses=losses, supervised=supervised)]
