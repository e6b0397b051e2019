"""The scripts, run: real ranks, with the variables that each platform sets."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lorafit.run_dir import RunDir
from tests.clusters.conftest import ENTER, Write, short

SRUN = Path(__file__).with_name("emulated_srun.py")
JOB_ID = str(os.getpid())  # the ports of a job follow from it: tests beside these take others
Sbatch = Callable[..., subprocess.Popen[str]]


def finished(folder: Path) -> dict[str, object]:
    """The record of a run that came to its end."""
    run = RunDir(folder / "runs" / "quickstart")
    assert json.loads(run.result.read_text())["status"] == "done"
    record: dict[str, object] = json.loads(run.record.read_text())
    return record


def ended(process: subprocess.Popen[str], timeout_s: float = 240) -> str:
    out, _ = process.communicate(timeout=timeout_s)
    return out


def start(script: str, environment: dict[str, str], *arguments: str,
          **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(["bash", "-c", script, "script", *arguments], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env={**environment, **more})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_torchrun_on_one_machine(write: Write, folder: Path,
                                 environment: dict[str, str]) -> None:
    script = write("--torchrun", "--num-processes", "2", "--setup", ENTER, *short())
    process = start(script, environment)
    said = ended(process)
    assert process.returncode == 0, said
    assert finished(folder)["processes"] == 2


@pytest.mark.long
def test_torchrun_on_two_machines(write: Write, folder: Path,
                                  environment: dict[str, str]) -> None:
    script = write("--torchrun", "--nodes", "2", "--setup", ENTER, *short())
    missing = start(script, environment)
    assert "the number of this machine" in ended(missing)
    assert missing.returncode != 0
    at = f"localhost:{free_port()}"
    second, first = (start(script, environment, number, at, LOCAL_ADDR="localhost")
                     for number in ("1", "0"))
    said = ended(first) + ended(second)
    assert first.returncode == second.returncode == 0, said
    assert finished(folder)["processes"] == 2


@pytest.fixture
def sbatch(folder: Path, environment: dict[str, str], tmp_path: Path) -> Sbatch:
    """Runs a batch script as Slurm does on one machine, as many tasks as it asks for."""
    (tmp_path / "bin").mkdir()
    calls = tmp_path / "slurm"
    calls.mkdir()
    for name, does in (("srun", f'exec {sys.executable} {SRUN} "$@"'),
                       ("scontrol", f'echo "$@" >> {calls}/scontrol')):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def run(script: str, path: str = "", **more: str) -> subprocess.Popen[str]:
        asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", script, re.MULTILINE))
        tasks = int(asked["nodes"]) * int(asked["ntasks-per-node"])
        slurm = {"SLURM_JOB_ID": JOB_ID, "SLURM_JOB_NODELIST": "localhost",
                 "SLURM_NTASKS": str(tasks), "SLURM_JOB_NUM_NODES": asked["nodes"],
                 "EMULATED_SLURM": str(calls)}
        paths = f"{path}:{tmp_path / 'bin'}:{environment['PATH']}"
        return start(script, {**environment, **slurm, "PATH": paths.lstrip(":"), **more})

    return run


def calls(tmp_path: Path, name: str) -> list[str]:
    path = tmp_path / "slurm" / name
    return path.read_text().splitlines() if path.exists() else []


def test_slurm_trains_with_a_rank_a_task(write: Write, folder: Path, sbatch: Sbatch,
                                         tmp_path: Path) -> None:
    script = write("--slurm", "--num-processes", "2", "--setup", ENTER, "--time", "10m", *short())
    job = sbatch(script)
    said = ended(job)
    assert job.returncode == 0, said
    assert finished(folder)["processes"] == 2
    assert len(calls(tmp_path, "srun")) == 1
    assert calls(tmp_path, "scontrol") == []
    assert [each.name for each in folder.iterdir() if "ended" in each.name] == []


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_slurm_queues_the_job_again_when_its_time_is_over(
    write: Write, folder: Path, sbatch: Sbatch, tmp_path: Path,
) -> None:
    """And goes on from the checkpoint; a job in whose time none was made is not queued for ever."""
    script = write("--slurm", "--num-processes", "2", "--setup", ENTER, "--time", "10m",
                   "--restarts", "3", *short("training.steps=100000"))
    for limit_s in (20, 80, 240):  # the first in which this machine gets to a step
        brief = re.sub("STOP_AFTER_S=[0-9]+", f"STOP_AFTER_S={limit_s}", script)
        attempts = len(calls(tmp_path, "srun"))
        job = sbatch(brief)
        said = ended(job, 2 * limit_s + 60)
        assert len(calls(tmp_path, "srun")) == attempts + 1
        if job.returncode == 0:
            break
    assert job.returncode == 0, said
    assert calls(tmp_path, "scontrol") == [f"requeue {JOB_ID}"]
    assert (folder / "runs" / "quickstart" / "checkpoints" / "latest").exists()
    again = sbatch(brief)
    assert "resumed" in ended(again, 2 * limit_s + 60)
    assert again.returncode == 0
    none = sbatch(re.sub("STOP_AFTER_S=[0-9]+", "STOP_AFTER_S=0", script))
    assert "no checkpoint was committed" in ended(none)
    assert none.returncode == 6
    assert calls(tmp_path, "scontrol") == 2 * [f"requeue {JOB_ID}"]


def test_slurm_signals_every_process_and_the_run_commits(
    write: Write, folder: Path, sbatch: Sbatch, tmp_path: Path,
) -> None:
    """As before a limit: SIGUSR1 saves, SIGTERM saves and ends. The shells between outlive it."""
    script = write("--slurm", "--num-processes", "2", "--setup", ENTER, "--restarts", "3",
                   *short("training.steps=100000"))
    job = sbatch(script, PYTHONUNBUFFERED="1")
    latest = folder / "runs" / "quickstart" / "checkpoints" / "latest"
    metrics = folder / "runs" / "quickstart" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and '"loss"' in metrics.read_text(), job)
    srun = next(int(each) for each in os.listdir("/proc") if each.isdigit()
                and str(SRUN) in command_of(each) and parent_is(each, job.pid))
    os.kill(srun, signal.SIGUSR1)
    wait_for(latest.exists, job)
    before = latest.read_text()
    assert job.poll() is None
    os.kill(srun, signal.SIGTERM)
    said = ended(job)
    assert job.returncode == 143, said
    assert latest.read_text() != before
    assert len(calls(tmp_path, "srun")) == 1  # somebody asked for it, so it is not tried again


def wait_for(happens: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not happens():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def command_of(process: str) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


def parent_is(process: str, parent: int) -> bool:
    return f"\nPPid:\t{parent}\n" in Path(f"/proc/{process}/status").read_text()


@pytest.mark.parametrize(("codes", "ends_with", "steps"), [
    (["0 0"], 0, 1),
    (["3 3", "0 0"], 0, 2),
    (["-9 0", "3 0", "0 0"], 0, 3),
    (["-9 0", "-9 0", "-9 0", "0 0"], 137, 3),
    (["6 6"], 0, 1),  # and queued again
    (["2 2"], 2, 1),
    (["4 4"], 4, 1),
    (["143 143"], 143, 1),
], ids=lambda value: str(value))
def test_slurm_tries_again_what_may_go_better(
    write: Write, sbatch: Sbatch, tmp_path: Path, codes: list[str], ends_with: int, steps: int,
) -> None:
    """A stand-in for lorafit ends with a code a rank and attempt; -9: kills itself."""
    (tmp_path / "codes").write_text("\n".join(codes))
    stand_in = tmp_path / "stand-in"
    stand_in.mkdir()
    run = "runs/quickstart/checkpoints"
    (stand_in / "lorafit").write_text(
        f'#!/bin/bash\nset -- $(sed -n "$((SLURM_STEP_ID + 1))p" "{tmp_path}/codes")\n'
        'shift "$SLURM_PROCID"\n'
        f'mkdir -p {run} && date +%N > {run}/latest\n'
        '[ "$1" = -9 ] && { kill -9 $$; }\n[ "$1" = 0 ] || sleep 0.2\nexit "$1"\n')
    (stand_in / "lorafit").chmod(0o755)
    script = write("--slurm", "--num-processes", "2", "--restarts", "2", "--time", "1h", "--setup",
                   "true")
    job = sbatch(script, path=str(stand_in))
    said = ended(job)
    assert job.returncode == ends_with, said
    assert len(calls(tmp_path, "srun")) == steps, said
    assert calls(tmp_path, "scontrol") == ([f"requeue {JOB_ID}"] if codes == ["6 6"] else [])


@pytest.mark.long
def test_skypilot_runs_on_each_machine(write: Write, folder: Path,
                                       environment: dict[str, str]) -> None:
    task = yaml.safe_load(write("--skypilot", "--nodes", "2", "--gpu-type", "H100", "--volume",
                                "runs", "--setup", ENTER, *short()))
    assert start(task["setup"], environment).wait(30) == 0
    run = task["run"].replace("/mnt/lorafit", str(folder / "volume").replace(" ", "\\ ")) \
        .replace(":29400", f":{free_port()}")
    machines = [start(run, environment, SKYPILOT_NODE_RANK=number, SKYPILOT_NUM_NODES="2",
                      SKYPILOT_NODE_IPS="127.0.0.1\n127.0.0.1", SKYPILOT_NUM_GPUS_PER_NODE="1",
                      LORAFIT_CACHE=str(folder / "cache")) for number in ("1", "0")]
    said = "".join(map(ended, machines))
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert finished(folder / "volume")["processes"] == 2


@pytest.mark.long
def test_kubernetes_runs_in_each_pod(write: Write, folder: Path,
                                     environment: dict[str, str]) -> None:
    _, job = yaml.safe_load_all(write("--kubernetes", "--nodes", "2", "--image", "a/b", "--setup",
                                      ENTER, "--restarts", "1", *short()))
    script = job["spec"]["template"]["spec"]["containers"][0]["command"][2]
    script = script.replace("first=quickstart-0.quickstart", "first=localhost") \
        .replace(":29400", f":{free_port()}")
    pods = [start(script, environment, JOB_COMPLETION_INDEX=number) for number in ("1", "0")]
    said = "".join(map(ended, pods))
    assert [pod.returncode for pod in pods] == [0, 0], said
    assert finished(folder)["processes"] == 2
