"""Scripts as a user gets them, in a directory that has a recipe and its data."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lorafit.cli import main as cli
from tests.conftest import REPOSITORY

Write = Callable[..., str]
BIN = Path(sys.executable).parent
ENTER = f"export PATH={BIN}:$PATH"  # where lorafit and torchrun are
SHORT = ["training.steps=2", "training.batch_size=4", "training.sample_prompts=[]",
         "training.warmup=0", "training.eval_every=null", "data.eval=null", "data.max_rows=16"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: quickstart.yaml and its rows."""
    place = tmp_path / "my runs"  # a path that has to be quoted
    place.mkdir()
    shutil.copy(REPOSITORY / "recipes" / "quickstart.yaml", place)
    shutil.copytree(REPOSITORY / "recipes" / "quickstart", place / "quickstart")
    monkeypatch.chdir(place)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return place


@pytest.fixture
def write(folder: Path, monkeypatch: pytest.MonkeyPatch,
          capsys: pytest.CaptureFixture[str]) -> Write:
    """What `lorafit launch-script quickstart.yaml …` prints, in this process."""

    def printed(*options: str, code: int = 0, recipe: str = "quickstart.yaml") -> str:
        monkeypatch.setattr("sys.argv", ["lorafit", "launch-script", recipe, *options])
        assert cli._run() == code
        out, err = capsys.readouterr()
        return err if code else out

    return printed


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    """Of the scripts: this process's, with the package under test before an installed one."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def short(*more: str) -> list[str]:
    """Overrides of a run of seconds."""
    return [word for each in (*SHORT, *more) for word in ("--set", each)]
