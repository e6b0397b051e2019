"""What Slurm does for a batch script, on this machine: `srun` as a program, started for the tests.

Starts SLURM_NTASKS real processes with the variables that srun sets. With --kill-on-bad-exit=1 the
first bad exit kills the others. Ends with the highest exit code, 128 + N after signal N.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    options = [word for word in sys.argv[1:] if word.startswith("--")]
    options = options[:next((k for k, word in enumerate(sys.argv[1:])
                             if not word.startswith("--")), None)]
    command = sys.argv[1 + len(options):]
    assert "--kill-on-bad-exit=1" in options, options
    calls = Path(os.environ["EMULATED_SLURM"]) / "srun"
    step = len(calls.read_text().splitlines()) if calls.exists() else 0
    with calls.open("a") as file:
        file.write(" ".join(options) + "\n")
    count = int(os.environ["SLURM_NTASKS"])
    tasks = [subprocess.Popen(command, start_new_session=True, env={
        **os.environ, "SLURM_STEP_ID": str(step), "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_STEP_NODELIST": os.environ["SLURM_JOB_NODELIST"],
        "SLURM_STEP_TASKS_PER_NODE": str(count), "SLURM_NODEID": "0",
        "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}) for number in range(count)]

    def hand_on(number: int, frame: object) -> None:  # to every process of a task, as Slurm does
        for task in tasks:
            if task.poll() is None:
                os.killpg(task.pid, number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, hand_on)
    while any(task.poll() is None for task in tasks):
        if any(task.returncode for task in tasks):
            hand_on(signal.SIGKILL, None)
        time.sleep(0.02)
    return max(code if code >= 0 else 128 - code for code in (task.wait() for task in tasks))


if __name__ == "__main__":
    sys.exit(main())
