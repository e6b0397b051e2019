"""Two real runs that the tests of this folder read, and break copies of."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import run_training

NASTY = "<script>alert('1')</script> & \u202e\"quoted\""


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Finished runs of six and four steps, with other ranks and rates. What the first one is asked
    would break a page that did not escape it."""
    from lorafit.recipe.schema import Recipe

    folder = tmp_path_factory.mktemp("report")
    for name, first in (("train.jsonl", 0), ("eval.jsonl", 50)):
        (folder / name).write_text("".join(
            json.dumps({"prompt": f"{n} + 1? {NASTY}", "completion": f"{n + 1}. ü <b>"}) + "\n"
            for n in range(first, first + 12)), encoding="utf-8")

    def trained(name: str, rank: int, steps: int) -> Path:
        run_training(Recipe.model_validate({
            "model": {"base": "tiny", "dtype": "float32"}, "adapter": {"rank": rank},
            "data": {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl"),
                     "max_eval_rows": 3},
            "training": {"steps": steps, "batch_size": 2, "eval_every": 2, "checkpoint_every": 2,
                         "learning_rate": 1e-3 * rank, "sample_prompts": [NASTY],
                         "sample_tokens": 4},
            "output": {"dir": str(folder / name)}}))
        return folder / name

    return trained("one", 4, 6), trained("two", 2, 4)


@pytest.fixture
def finished(two_runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the first."""
    return Path(shutil.copytree(two_runs[0], tmp_path / "runs" / "one"))


@pytest.fixture
def stopped(finished: Path) -> Path:
    """The run as it was before its end."""
    (finished / "result.json").unlink()
    shutil.rmtree(finished / "adapter")
    return finished
