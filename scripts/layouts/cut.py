"""A finished run, taken back to an earlier step, for other processes to go on with."""

import shutil
from pathlib import Path

from lorafit.run_dir import MANIFEST, RunDir, sha256


def cut_back(run: Path, step: int) -> None:
    """A finished run as it was after the checkpoint of a step, when it had been stopped then."""
    directory = RunDir(run)
    directory.result.unlink()
    shutil.rmtree(directory.adapter)
    for path in directory.list_checkpoints():
        if path.name > directory.checkpoint(step).name:
            shutil.rmtree(path)
    kept = directory.checkpoint(step)
    directory.latest.write_text(f"{kept.name} {sha256(kept / MANIFEST)}\n", encoding="utf-8")
