"""What is asked: lorafit, and a plain script of transformers' Trainer and peft beside it."""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from reliability.processes import Process, forks
from reliability.row import Setting, Tally

TINY = Path(__file__).parent.parent.parent / "lorafit" / "model" / "tiny"
ROWS = 48


class Subject(Protocol):
    """A program that trains with one recipe, in one directory for each run."""

    folder: Path
    steps: int

    def start(self, run: Path, **how: Any) -> Process:
        """Start the run, or go on where it stopped; the same command for both."""
        ...

    def problem(self, run: Path, digest: str) -> str | None:
        """Why the run is not finished with this SHA-256; None when it is."""
        ...

    def steps_done(self, run: Path) -> int:
        """Optimizer steps that the run says it has done."""
        ...

    def saved_step(self, run: Path) -> int:
        """Step of the newest checkpoint that is there as a whole, 0 for none."""
        ...

    def is_saving(self, path: str) -> bool:
        """Whether a file belongs to a checkpoint or to the result."""
        ...

    def digest(self, run: Path) -> str: ...


@dataclass(frozen=True)
class Lorafit:
    """changes: of sections of the recipe. options: of the command."""

    folder: Path
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    steps: int = 12
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_rows(self.folder / "train.jsonl", ROWS)
        write_rows(self.folder / "eval.jsonl", 6, first=1000)
        recipe: dict[str, Any] = {
            "model": {"base": "tiny", "dtype": "float32"},
            "adapter": {"rank": 4, "alpha": 8, "dropout": 0.1},
            "data": {"train": str(self.folder / "train.jsonl"), "workers": 1,
                     "date": "2026-01-31", "max_length_tokens": 128},
            "training": {"steps": self.steps, "batch_size": 8, "micro_batch_size": 4,
                         "learning_rate": 1e-3, "checkpoint_every": 1},
            "output": {"dir": "runs"},
        }
        for section, values in self.changes.items():
            recipe[section] = {**recipe.get(section, {}), **values}
        # JSON is YAML, too.
        (self.folder / "recipe.yaml").write_text(json.dumps(recipe, indent=1), encoding="utf-8")

    def start(self, run: Path, *options: str, environment: dict[str, str] | None = None,
              **how: Any) -> Process:
        cache = {"LORAFIT_CACHE": str(self.folder / "cache"), **(environment or {})}
        return forks().start(
            ["lorafit", "train", str(self.folder / "recipe.yaml"), "--set", f"output.dir={run}",
             "--auto-resume", *self.options, *options],
            self.folder, run.name, environment=cache, **how)

    def digest(self, run: Path) -> str:
        return sha256(run / "adapter" / "adapter_model.safetensors")

    def problem(self, run: Path, digest: str) -> str | None:
        if not (run / "result.json").exists():
            return "there is no result.json"
        status = json.loads((run / "result.json").read_text())["status"]
        if status != "done":
            return f"result.json says {status!r}"
        return None if self.digest(run) == digest else "other bytes than the uninterrupted run's"

    def steps_done(self, run: Path) -> int:
        return max((line["step"] for line in self.lines(run)), default=0)

    def lines(self, run: Path) -> list[dict[str, Any]]:
        """One for each step, from metrics.jsonl."""
        try:
            text = (run / "metrics.jsonl").read_text(encoding="utf-8")
        except OSError:
            return []
        lines = [json.loads(line) for line in text.split("\n")[:-1] if line]
        return [line for line in lines if "loss" in line]

    def saved_step(self, run: Path) -> int:
        return max((int(path.name[5:]) for path in run.glob("checkpoints/step-*")), default=0)

    def is_saving(self, path: str) -> bool:
        return "/checkpoints" in path or "/adapter" in path or path.endswith("adapter.partial")


@dataclass(frozen=True)
class Peer:
    """scripts/reliability/trainer.py. settings: of its command line."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 12

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_rows(self.folder / "train.jsonl", ROWS)

    def start(self, run: Path, *, environment: dict[str, str] | None = None,
              **how: Any) -> Process:
        settings = {"data": self.folder / "train.jsonl", "base": TINY, "output": run,
                    "steps": self.steps, **self.settings}
        options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        return forks().start(["trainer", *options], self.folder, run.name,
                             environment=environment, **how)

    def digest(self, run: Path) -> str:
        return sha256(run / "adapter_model.safetensors")

    def problem(self, run: Path, digest: str) -> str | None:
        if not (run / "adapter_model.safetensors").exists():
            return "there is no adapter"
        return None if self.digest(run) == digest else "other bytes than the uninterrupted run's"

    def steps_done(self, run: Path) -> int:
        log = run.with_name(f"{run.name}.out")
        folder_log = self.folder / f"{run.name}.out"
        text = (folder_log if folder_log.exists() else log).read_text(errors="replace")
        return text.count("'loss':")

    def saved_step(self, run: Path) -> int:
        return max((int(path.parent.name.rpartition("-")[2])
                    for path in run.glob("checkpoint-*/trainer_state.json")), default=0)

    def is_saving(self, path: str) -> bool:
        return "/checkpoint-" in path


def write_rows(path: Path, rows: int, first: int = 0) -> None:
    """Chat rows of different lengths: sums, asked and answered."""
    if path.exists():
        return
    path.write_text("".join(json.dumps({"messages": [
        {"role": "user", "content": f"How much is {n} and {n + 1}?" + " Please." * (n % 4)},
        {"role": "assistant", "content": f"It is {2 * n + 1}." + " Yes." * (n % 3)},
    ]}) + "\n" for n in range(first, first + rows)), encoding="utf-8")


@dataclass(frozen=True)
class Whole:
    """A run that nothing interrupted."""

    digest: str
    seconds: float
    run: Path


def uninterrupted(subject: Subject, name: str = "whole", **how: Any) -> Whole:
    run = subject.folder / name
    process = subject.start(run, **how)
    if code := process.wait():
        raise RuntimeError(f"the uninterrupted run ended with {code}:\n{process.said()[-3000:]}")
    return Whole(subject.digest(run), process.seconds, run)


def finish(subject: Subject, run: Path, digest: str, **how: Any) -> str | None:
    """Give the same command again, nothing in its way; what is wrong with how that ends."""
    process = subject.start(run, **how)
    if code := process.wait():
        return f"cannot go on: exit {code}: {last_words(process)}"
    return subject.problem(run, digest)


def last_words(process: Process) -> str:
    lines = [line.strip() for line in process.errors().splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["nothing was said"])[-1][:300]


def each(setting: Setting, times: int, case: Callable[[int], str | None],
         tally: Tally | None = None) -> Tally:
    """Ask `case(0)` … `case(times − 1)`, `setting.jobs` at once; what it raises is a problem."""
    def asked(number: int) -> str | None:
        try:
            problem = case(number)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        return None if problem is None else f"#{number}: {problem}"

    tally = tally or Tally()
    for problem in _at_once(setting.jobs, asked, times):
        tally.count(problem)
    return tally


def _at_once(jobs: int, asked: Callable[[int], str | None], times: int) -> Iterator[str | None]:
    if jobs == 1:
        yield from map(asked, range(times))
        return
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(asked, range(times))


def not_finite(run: Path) -> list[str]:
    """The safetensors of a run that hold a number which is not finite."""
    import numpy as np
    from safetensors.numpy import load_file

    return [str(path.relative_to(run)) for path in sorted(run.rglob("*.safetensors"))
            if any(tensor.dtype.kind == "f" and not np.isfinite(tensor).all()
                   for tensor in load_file(path).values())]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
