"""One run of a tool in a process of its own, watched by the probe."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.peer import Peer, Work

HERE = Path(__file__).parent
# No network, no telemetry, no accelerator: all tools compute on the CPU.
SURROUNDINGS = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "WANDB_MODE": "disabled",
    "CUDA_VISIBLE_DEVICES": "", "PYTHONNOUSERSITE": "1", "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Run:
    """What a run left. steps: the probe's lines, the loss filled in. failure: why it has none."""

    seconds: float
    steps: list[dict[str, Any]]
    failure: str | None


def run(peer: Peer, work: Work, folder: Path, work_dir: Path, lorafit: list[str], threads: int,
        limit_s: float) -> Run:
    """Starts `peer` on `work`; everything it writes goes into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    start = peer.write(work, folder)
    if start.own:
        command, found = [*lorafit, *start.arguments], [HERE / "probe"]
    else:
        assert peer.environment is not None
        command = [str(peer.environment.python(work_dir)), *start.arguments]
        # `peers` is imported by its name, so that none of its files hides a tool's package.
        found = [HERE / "probe", HERE.parent]
    inherited = {name: value for name, value in os.environ.items()
                 if not name.startswith(("PYTHON", "OMP_", "MKL_", "VIRTUAL_ENV"))}
    environment = {
        **inherited, **SURROUNDINGS, "PYTHONPATH": os.pathsep.join(map(str, found)),
        "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
        "HF_HOME": str(work_dir / "cache" / "huggingface"),
        "XDG_CACHE_HOME": str(work_dir / "cache"), "PEERS_PROBE": str(folder / "probe.jsonl"),
        "PEERS_VOCABULARY": str(work.vocabulary), "PEERS_PAD_ID": str(work.pad_id),
        **start.environment,
    }
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as file:
        started = time.time()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=folder,
                                   stdin=subprocess.DEVNULL, start_new_session=True,
                                   env={**environment, "PEERS_STARTED": repr(started)})
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            stop(process)
    seconds = time.time() - started
    if code != 0:
        why = "took too long" if code is None else reason(log) or f"ended with code {code}"
        return Run(seconds, [], why)
    try:
        return Run(seconds, steps_of(peer, folder), None)
    except ValueError as problem:
        return Run(seconds, [], str(problem))


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends what is left of a run: the process, and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def steps_of(peer: Peer, folder: Path) -> list[dict[str, Any]]:
    """The probe's lines.

    Raises:
        ValueError: no step was seen, or more than one process trained.
    """
    path = folder / "probe.jsonl"
    steps = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    if len(steps) < 3:
        raise ValueError(f"the probe saw {len(steps)} optimizer steps")
    if len({step["pid"] for step in steps}) > 1:
        raise ValueError("several processes took optimizer steps")
    if not steps[0]["supervised"] and peer.supervised:
        # The last step's line stands for all.
        steps[-1]["supervised"] = peer.supervised(folder)
    if steps[0]["loss"] is None:
        losses = peer.losses(folder) if peer.losses else losses_in(folder / "log.txt")
        if len(losses) != len(steps):
            raise ValueError(f"{len(losses)} losses in its log, {len(steps)} steps")
        steps = [{**step, "loss": loss} for step, loss in zip(steps, losses, strict=True)]
    return steps


def losses_in(log: Path) -> list[float]:
    """The losses that transformers' Trainer prints."""
    return [float(value) for value in
            re.findall(r"'loss': '?([0-9.]+(?:e[+-]?\d+)?)", log.read_text(errors="replace"))]


def reason(log: Path) -> str:
    """The last line of a log that says what went wrong."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()
             if line.strip()]
    telling = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b|error:", line)]
    return (telling or lines or [""])[-1][:200]
