"""A real run that was trained and exported, to be copied and broken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorafit.doctor.finding import Finding, Verdict
from tests.conftest import run_training


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six steps with three checkpoints, and its exported adapter."""
    from lorafit.cli.verbs.run import export_adapter
    from lorafit.recipe.schema import Recipe

    folder = tmp_path_factory.mktemp("doctor")
    for name, first in (("train.jsonl", 0), ("eval.jsonl", 50)):
        (folder / name).write_text("".join(
            json.dumps({"prompt": f"{n} + 1?", "completion": f"{n + 1}."}) + "\n"
            for n in range(first, first + 16)))
    run = folder / "run"
    run_training(Recipe.model_validate({
        "model": {"base": "tiny", "dtype": "float32"}, "adapter": {"rank": 4},
        "data": {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl"),
                 "max_eval_rows": 4},
        "training": {"steps": 6, "batch_size": 2, "eval_every": 2, "checkpoint_every": 2,
                     "keep_checkpoints": 3, "sample_prompts": ["1 + 1?"], "sample_tokens": 4},
        "output": {"dir": str(run)}}))
    export_adapter(run, None, None, "peft")
    return run


@pytest.fixture
def finished(trained_once: Path, tmp_path: Path) -> Path:
    """A copy of it. Its recipe names the directory that it was copied from."""
    shutil.copytree(trained_once, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def stopped(finished: Path) -> Path:
    """The run as it was before its end."""
    (finished / "result.json").unlink()
    shutil.rmtree(finished / "adapter")
    shutil.rmtree(finished / "exported")
    return finished


@pytest.fixture
def problems() -> Callable[[Any], dict[str, str]]:
    """What does not work or is damaged, by name; several of one name one after the other."""

    def of(findings: Any) -> dict[str, str]:
        found: dict[str, str] = {}
        for each in findings:
            assert isinstance(each, Finding)
            if each.verdict is Verdict.PROBLEM:
                found[each.name] = "; ".join(filter(None, (found.get(each.name), each.text)))
        return found

    return of
