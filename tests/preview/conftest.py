"""Previews of small recipes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorafit.preview.facts import Preview, Wanted, look
from lorafit.recipe.auto import Device

CPU = Device("cpu", "a CPU", has_bfloat16=False)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    from lorafit.model.base import TINY

    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture
def preview(tokenizer: Any) -> Callable[..., Preview]:
    """Looks at a recipe's data as the command does, on a machine without a GPU."""

    def make(recipe: Any, *places: str, rows: int = 3, split: str = "train") -> Preview:
        return look(recipe, tokenizer, CPU, Wanted(rows, places, split), lambda source, count: None)

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes conversations, each given as its contents: user, assistant, user, …"""

    def write(*rows: list[str], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"messages": [
            {"role": "assistant" if i % 2 else "user", "content": content}
            for i, content in enumerate(row)
        ]}) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
