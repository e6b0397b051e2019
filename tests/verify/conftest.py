"""A chat run, and what left it, made once; a server that has them."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def trained(folder: Path, name: str, **sections: dict[str, Any]) -> Path:
    """A run on sums as chats, at a rate that changes what the base answers."""
    from lorafit.recipe.schema import Recipe
    from lorafit.train.run import train

    def rows(file: str, first: int, count: int) -> str:
        path = folder / file
        path.write_text("".join(json.dumps({"messages": [
            {"role": "user", "content": f"How much is {n} and {n}?"},
            {"role": "assistant", "content": f"It is {2 * n}."}]}) + "\n"
            for n in range(first, first + count)), encoding="utf-8")
        return str(path)

    run = folder / name
    values: dict[str, Any] = {
        "model": {"base": "tiny", "dtype": "float32"},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {"train": rows("train.jsonl", 0, 8), "eval": rows("eval.jsonl", 100, 4)},
        "training": {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "keep": "last",
                     "eval_every": 6},
        "output": {"dir": str(run)},
    }
    for section, changes in sections.items():
        values[section] = {**values[section], **changes}
    train(Recipe.model_validate(values), resume=False, announce=lambda record: None,
          started_s=time.perf_counter())
    return run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("verify"), "run")


@pytest.fixture(scope="session")
def merged(run: Path) -> Path:
    """By the verb, which writes the papers too."""
    from lorafit.cli.verbs.run import merge

    merge(run, None, None, None)
    return run / "merged"


@pytest.fixture(scope="session")
def exported(run: Path) -> Path:
    from lorafit.cli.verbs.run import export_adapter

    export_adapter(run, None, None, "peft")
    return run / "exported"


@pytest.fixture(scope="session")
def server(run: Path, exported: Path) -> Iterator[str]:
    """The address of a process that serves base and adapter; its paths are ways of serving."""
    from lorafit.model.base import TINY

    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("openai_server.py")), str(TINY),
         str(exported)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of an artifact, to be spoilt."""
    import shutil

    def make(artifact: Path) -> Path:
        return Path(shutil.copytree(artifact, tmp_path / artifact.name))

    return make
