"""How fast a device computes: what each unit of work takes, fitted to steps that were measured.

    seconds of a step = Σ units of work × seconds a unit

The units are those of plan/work.py; seconds a unit are the non-negative ones that explain the
measured steps best, relative to their length. They are kept for a device, its threads, a number
format and the versions of what computes.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path

import numpy as np

from lorafit import __version__
from lorafit.cache_dir import cache_directory
from lorafit.errors import UserError
from lorafit.json_files import read_object
from lorafit.plan.machine import Machine
from lorafit.plan.work import Work

UNITS = tuple(field.name for field in fields(Work))
_FORMAT = 3


@dataclass(frozen=True)
class Measured:
    """A step that was timed: what there was to compute, and its median seconds."""

    work: Work
    seconds: float


@dataclass(frozen=True)
class Calibration:
    """seconds: a unit of each kind of work. error: the largest relative difference from a step that
    was measured for it. device: its name. steps: how many were measured."""

    device: str
    seconds: dict[str, float]
    error: float
    steps: int

    def step_s(self, work: Work) -> float:
        """Seconds of a step."""
        return sum(getattr(work, unit) * self.seconds[unit] for unit in UNITS)


@dataclass(frozen=True)
class Key:
    """What a calibration holds for. threads: of a CPU. stored: how the base is quantised."""

    device: str
    threads: int
    dtype: str
    stored: str

    @classmethod
    def of(cls, machine: Machine, dtype: str, quantization: str) -> "Key":
        """Of what a recipe computes in on a machine."""
        is_cpu = machine.device.kind == "cpu"
        return cls(machine.processor if is_cpu else machine.device.name,
                   machine.threads if is_cpu else 1, dtype, quantization)

    @property
    def path(self) -> Path:
        version = metadata.version("torch")
        words = (self.device, str(self.threads), self.dtype, self.stored, version, __version__,
                 str(_FORMAT))
        name = "-".join("".join(c if c.isalnum() or c in ".+" else "_" for c in word)
                        for word in words)
        return cache_directory() / "calibrations" / f"{name}.json"


def fit(device: str, measured: Sequence[Measured]) -> Calibration:
    """Seconds a unit, by least squares of relative differences, none of them negative.

    There are few units, so each choice of those that are not 0 is tried.
    """
    work = np.array([[getattr(each.work, unit) for unit in UNITS] for each in measured])
    seconds = np.array([each.seconds for each in measured])
    relative = work / seconds[:, None]
    best, best_error = np.zeros(len(UNITS)), np.inf
    used = [i for i in range(len(UNITS)) if work[:, i].any()]
    for count in range(1, len(used) + 1):
        for chosen in itertools.combinations(used, count):
            columns = relative[:, chosen]
            scale = columns.max(axis=0)
            found, *_ = np.linalg.lstsq(columns / scale, np.ones(len(measured)), rcond=None)
            if (found < 0).any():
                continue
            values = np.zeros(len(UNITS))
            values[list(chosen)] = found / scale
            error = float(((relative @ values - 1) ** 2).sum())
            if error < best_error - 1e-12:
                best, best_error = values, error
    worst = float(np.abs(relative @ best - 1).max())
    return Calibration(device, dict(zip(UNITS, map(float, best), strict=True)), worst,
                       len(measured))


def kept(key: Key) -> Calibration | None:
    """What was measured of a device before; None where nothing was, or it cannot be read."""
    try:
        values = read_object(key.path)
        found = Calibration(str(values["device"]), {
            unit: float(values["seconds"][unit]) for unit in UNITS}, float(values["error"]),
            int(values["steps"]))
    except (UserError, KeyError, TypeError, ValueError):
        return None
    return found if all(second >= 0 for second in found.seconds.values()) else None


def keep(key: Key, calibration: Calibration) -> Path:
    key.path.parent.mkdir(parents=True, exist_ok=True)
    key.path.write_text(json.dumps(asdict(calibration), indent=2) + "\n", encoding="utf-8")
    return key.path
