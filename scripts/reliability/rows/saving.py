"""What saving costs a run, and how soon a resumed one takes its first step."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from reliability.processes import SCRIPTS, wait_until
from reliability.row import Row, Setting, Tally
from reliability.subject import Lorafit

MOST = 0.01
RESUMED_WITHIN_S = 10.0
QUICKSTART = SCRIPTS.parent / "recipes" / "quickstart.yaml"


def ask_cost(setting: Setting, times: int) -> Tally:
    """The quickstart's recipe, saved as often as by default (at each of ten evaluations), in
    processes of their own with the threads that they would have."""
    tally = Tally()
    for number in range(times):
        figures, run = setting.work / f"{number}.json", setting.work / f"run-{number}"
        subprocess.run(
            [sys.executable, "-m", "reliability.timing", str(figures), "train", str(QUICKSTART),
             "--set", f"output.dir={run}", "--set", "training.eval_every=null",
             "--set", "training.sample_prompts=[]"],
            env=_environment(setting), check=True, capture_output=True)
        found = json.loads(figures.read_text())
        saves, run_s = found["saves_s"], found["run_s"]
        share = sum(saves) / run_s
        tally.count(None if share <= MOST else
                    f"{len(saves)} saves took {share:.2%} of {run_s:.0f} s")
        tally.remarks.append(f"{len(saves)} saves of {_megabytes(run):.1f} MB took "
                             f"{sum(saves):.2f} s of {run_s:.0f} s, {share:.2%}")
    return tally


def ask_resume(setting: Setting, times: int) -> Tally:
    """Processes of their own, stopped after a few steps; half of them stream their rows, 20 blocks
    in. Loading is what a fresh start takes to its first step."""
    tally = Tally()
    slowest = 0.0
    for number in range(times):
        streams = number % 2 == 1
        subject = Lorafit(setting.work / str(number), {
            "data": {"streaming": True, "shuffle_rows": 8} if streams else {},
            "training": {"checkpoint_every": 20, "batch_size": 8}}, steps=30)
        fresh, cut = subject.folder / "fresh", subject.folder / "cut"
        _run(setting, subject, fresh).wait()
        process = _run(setting, subject, cut)
        wait_until(lambda s=subject, c=cut: s.steps_done(c) >= 22, 120)
        process.send_signal(signal.SIGTERM)
        process.wait()
        _run(setting, subject, cut).wait()
        whole, resumed = (json.loads((run / "result.json").read_text())["first_step_after_s"]
                          for run in (fresh, cut))
        slowest = max(slowest, resumed - whole)
        tally.count(None if resumed - whole <= RESUMED_WITHIN_S else
                    f"first step after {resumed:.1f} s, fresh after {whole:.1f} s")
        tally.remarks.append(f"{'streamed' if streams else 'read before'}: first step {resumed:.1f}"
                             f" s after the process began, a fresh run's after {whole:.1f} s")
    return tally


def _run(setting: Setting, subject: Lorafit, run: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "lorafit", "train", str(subject.folder / "recipe.yaml"), "--set",
         f"output.dir={run}", "--auto-resume"],
        env=_environment(setting), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _environment(setting: Setting) -> dict[str, str]:
    return {**os.environ, "LORAFIT_DEVICE": "cpu", "HF_HUB_OFFLINE": "1",
            "LORAFIT_CACHE": str(setting.work / "cache"),
            "PYTHONPATH": os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent)])}


def _megabytes(run: Path) -> float:
    newest = max(run.glob("checkpoints/step-*"))
    return sum(path.stat().st_size for path in newest.iterdir()) / 1e6


COST = Row(
    "saving", "saving at the default frequency, the quickstart's recipe",
    "at most 1 % of the run", 1, 1, ask_cost)
RESUME = Row(
    "first-step", "a resumed run's first step, in a process of its own",
    "within 10 s plus loading", 4, 1, ask_resume)
