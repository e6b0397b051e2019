"""A run that several tests measure: trained until it knows some of the rows it is asked."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

CODES = {"red": "zq 41", "blue": "vx 77", "green": "mk 12", "grey": "pt 90"}


def write_rows(path: Path, codes: dict[str, str]) -> Path:
    path.write_text("".join(
        json.dumps({"prompt": f"Code of {name}?", "completion": f"It is {code}"}) + "\n"
        for name, code in codes.items()), encoding="utf-8")
    return path


def train_on(folder: Path, rows: Path, held_out: Path, name: str = "run", steps: int = 50,
             **sections: Any) -> Path:
    from lorafit.recipe.schema import Recipe
    from lorafit.train.run import train

    recipe = Recipe.model_validate({
        "model": {"base": "tiny", "dtype": "float32"}, "adapter": {"rank": 16, "alpha": 32},
        "data": {"train": str(rows), "eval": str(held_out), "checks": {"overlap": "allow"}},
        "training": {"steps": steps, "batch_size": 2, "learning_rate": 5e-3, "eval_every": steps,
                     "checkpoint_every": steps},
        "evaluation": {"max_new_tokens": 12}, "output": {"dir": str(folder / name)}, **sections})
    train(recipe, resume=False, announce=lambda record: None, started_s=time.perf_counter())
    return folder / name


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on two of the four rows that it holds out."""
    folder = tmp_path_factory.mktemp("known")
    rows = write_rows(folder / "rows.jsonl", {name: CODES[name] for name in ("red", "blue")})
    return train_on(folder, rows, write_rows(folder / "held.jsonl", CODES))
