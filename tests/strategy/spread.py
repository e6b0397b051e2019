"""Many runs in one pair of ranks: what starts processes and libraries costs is paid once.

As a program, started once for each rank by torch's launcher: `python -m tests.strategy.spread JOBS
SAID`. JOBS is a file of recipes to train one after the other with --strategy fsdp; SAID gets a line
for each, with the error that it ended in.
"""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
RANKS = 2


def train_sharded(jobs: Sequence[tuple[Any, bool]], folder: Path, limit_s: float = 900) -> \
        list[str | None]:
    """Train recipes on two ranks, each anew or (True) resumed. The error of each, None if it has
    none. After another one than lorafit's own, the next recipe gets another pair of ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    errors: list[str | None] = []
    while len(errors) < len(jobs):
        errors += _in_one_pair(jobs[len(errors):], folder, limit_s)
    return errors


def _in_one_pair(jobs: Sequence[tuple[Any, bool]], folder: Path, limit_s: float) -> \
        list[str | None]:
    """What became of the first jobs, up to one that failed."""
    wanted, said = folder / "jobs.json", folder / "said"
    wanted.write_text(json.dumps([(recipe.model_dump(mode="json"), resume)
                                  for recipe, resume in jobs]), encoding="utf-8")
    said.write_text("", encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS),
         "-m", "tests.strategy.spread", str(wanted), str(said)], cwd=REPOSITORY,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)})
    try:
        _, output = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        _, output = process.communicate()
        output = f"the ranks did not end: {output}"
    errors = [json.loads(line) for line in said.read_text(encoding="utf-8").splitlines()]
    return errors + [output[:4000]] * (len(errors) < len(jobs))


def _main(jobs: Path, said: Path) -> None:
    from accelerate import PartialState

    from lorafit import libraries
    from lorafit.errors import LorafitError, RankEnded
    from lorafit.recipe.schema import Recipe
    from lorafit.train.run import train
    from lorafit.train.strategy.wanted import Wanted

    libraries.settle(needs_hub=False)
    # A run ends its process group, which cannot be made again between the same processes.
    PartialState.destroy_process_group = lambda self, group=None: None
    for values, resume in json.loads(jobs.read_text(encoding="utf-8")):
        error = None
        try:
            train(Recipe.model_validate(values), resume=resume, announce=lambda record: None,
                  started_s=time.perf_counter(), wanted=Wanted("fsdp"))
        except LorafitError as raised:  # by both ranks alike, or the next recipe would hang
            error = str(raised.__context__ if isinstance(raised, RankEnded) else raised)
        gc.collect()
        if os.environ["RANK"] == "0":
            with said.open("a", encoding="utf-8") as file:
                file.write(json.dumps(error) + "\n")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
