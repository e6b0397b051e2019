"""What a program is to the proof: an environment, and a driver that runs in it.

A driver is a file in drivers/, started as `python driver.py IN.json OUT.json`. IN holds

    base        the base: a directory, or what the engine's `base` made of it
    adapters    name to path of what lorafit exported, all of this base
    merged      name to directory of merged models
    prompts     lists of token ids
    new_tokens  how many ids an answer has; an end of text ends nothing
    dtype       float32

and OUT, which the driver writes,

    answers     name to answers, each a list of token ids, the most likely one at every place
    base        the base's own answers, where the engine gives any
    engine      the version
    how         in a few words, how it was started

An adapter and a merged model of one name are two different things to ask; the second has the key
`merged:NAME` in the answers.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from environment import BUILT, Environment

DRIVERS = Path(__file__).parent / "drivers"


def _as_it_is(base: Path, folder: Path) -> Path:
    return base


@dataclass(frozen=True)
class Engine:
    """A program that serves what lorafit writes.

    name: on the command line. title: in the table. package: whose version is shown. torch: the
    version to build on, None where it needs none. format: what `lorafit export-adapter --format`
    is told for it; None where it takes no adapters. merged: of which adapters it is given merged
    models: of all, of those that are refused for it, or of none. model: what the driver is given of
    a base or a merged model, made in a folder; UserError where it cannot be. why_not: why it cannot
    run here; it is then listed with what is refused for it, and not run.
    """

    name: str
    title: str
    package: str
    driver: str = ""
    environment: Environment | None = None
    torch: str | None = None
    format: str | None = None
    merged: Literal["all", "refused", "none"] = "none"
    model: Callable[[Path, Path], Path] = _as_it_is
    surroundings: dict[str, str] = field(default_factory=dict)
    why_not: str = ""


class EngineError(Exception):
    """The program gave no answers. The text says why, and where its log is."""


def ask(engine: Engine, work: Path, folder: Path, request: dict[str, Any],
        limit_s: float) -> dict[str, Any]:
    """Runs the engine's driver in its environment and returns what it wrote.

    What was asked before, of the same files in the same environment, is not asked again.
    """
    assert engine.environment is not None
    folder.mkdir(parents=True, exist_ok=True)
    given, written, log = (folder / name for name in ("in.json", "out.json", "log.txt"))
    asked, digest = folder / "asked.sha256", _digest(engine, work, request)
    if asked.exists() and asked.read_text() == digest:
        known: dict[str, Any] = json.loads(written.read_text())
        return known
    given.write_text(json.dumps(request))
    for path in (asked, written):
        path.unlink(missing_ok=True)
    # A driver must not hide a package by its name; nothing reaches for a network or an accelerator.
    surroundings = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        "PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1", "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "CUDA_VISIBLE_DEVICES": "",
        "HF_HOME": str(work / "cache" / "huggingface"), "XDG_CACHE_HOME": str(work / "cache"),
        **engine.surroundings,
    }
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [str(engine.environment.python(work)), str(DRIVERS / engine.driver), str(given),
             str(written)],
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, cwd=folder,
            env=surroundings, start_new_session=True)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    if code != 0 or not written.exists():
        why = "took too long" if code is None else _last_error(log) or f"ended with code {code}"
        raise EngineError(f"{why} ({log})")
    answers: dict[str, Any] = json.loads(written.read_text())
    asked.write_text(digest)
    return answers


def _digest(engine: Engine, work: Path, request: dict[str, Any]) -> str:
    """Of the request, of every file that it names, of the driver and of the environment."""
    assert engine.environment is not None
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode())
    paths = [request["base"], *request["adapters"].values(), *request["merged"].values()]
    for path in [DRIVERS / engine.driver, engine.environment.python(work).parents[1] / BUILT,
                 *map(Path, paths)]:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends what is left of the driver's own group of processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if "Error" in line), "")
