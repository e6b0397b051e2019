"""Ranks of a job whose rank 1 is made to go wrong, started by a launcher or by hand."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}

# `wrong` is called before every micro-batch of a rank, with the number of the step, from 0.
_DRIVER = """
import os, signal, sys, time
import lorafit.train.step as steps
from lorafit.train import heartbeat
RANK = os.environ["RANK"]
real = steps.stream_seed
def stream_seed(seed, step, position, *part):
    wrong(step)
    return real(seed, step, position, *part)
steps.stream_seed = stream_seed
{wrong}
from lorafit.cli.main import main
main()
"""


def write_driver(path: Path, wrong: str) -> Path:
    path.write_text(_DRIVER.format(wrong=wrong))
    return path


def write_recipe(path: Path, recipe: Any) -> str:
    path.write_text(yaml.safe_dump(recipe.model_dump()))
    return str(path)


def by_torchrun(driver: Path, arguments: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(driver),
         "train", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def by_hand(driver: Path, arguments: Sequence[str], ranks: int = 2,
            missing: Sequence[int] = ()) -> list["subprocess.Popen[str]"]:
    """As a scheduler does it: nobody looks after them, and rank 0 holds the store. Those that are
    missing are not started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [subprocess.Popen(
        [sys.executable, str(driver), "train", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**ENVIRONMENT, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
             "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(port)}) for rank in range(ranks) if rank not in missing]
