"""How fast a device computes: measured by `lorafit plan --calibrate` and kept, or from a table.

The measuring program is `lorafit/bench/calibrate.py`, a process of its own, so that a plan needs no
torch.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path

from lorafit.cache_dir import cache_directory
from lorafit.errors import MachineError

_PATIENCE_S = 300.0
# Dense bfloat16 products (FLOP/s) and memory (bytes/s) by the makers' data sheets; the first name
# that is part of the device's counts.
_SHEETS = {"H100 PCIe": (756e12, 2.0e12), "H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12),
           "B200": (2250e12, 8.0e12), "A100": (312e12, 2.0e12), "L40S": (362e12, 0.86e12),
           "A10": (125e12, 0.6e12), "L4": (121e12, 0.3e12), "4090": (165e12, 1.0e12),
           "5090": (210e12, 1.8e12), "T4": (65e12, 0.32e12), "V100": (125e12, 0.9e12)}
EFFICIENCY = (0.25, 0.55)  # of a sheet's rate, what training steps reach: an honest range


@dataclass(frozen=True)
class Calibration:
    """Rates of one device, dtype and number of threads.

    matrices: (width, FLOP/s) of products of 512 tokens with a square matrix. few_tokens: share of
    that rate that 32 tokens reach. launch_s: of the smallest operation. source: measured, or whose
    sheet. uncertainty: the range of true seconds over predicted ones.
    """

    matrices: tuple[tuple[int, float], ...]
    few_tokens: float
    thin_flops_per_s: float
    attention_flops_per_s: float
    bytes_per_s: float
    dequantised_per_s: float
    launch_s: float
    source: str
    uncertainty: tuple[float, float] = (0.8, 1.25)

    def matrix_rate(self, width: int, tokens: int) -> float:
        """FLOP/s of products with matrices of about this width, between measured widths in
        proportion."""
        points = sorted(self.matrices)
        rate = points[0][1] if width <= points[0][0] else points[-1][1]
        for (low, slow), (high, fast) in pairwise(points):
            if low <= width <= high:
                rate = slow + (fast - slow) * (width - low) / (high - low)
        share = min(1.0, self.few_tokens + (1 - self.few_tokens) * tokens / 512)
        return rate * share


def cached(device: str, dtype: str, threads: int) -> Calibration | None:
    """What was measured on this machine; None where nothing was, or with other versions."""
    try:
        values = json.loads(_file(device, dtype, threads).read_text(encoding="utf-8"))
        return _of(values)
    except (OSError, ValueError, TypeError, KeyError, MachineError):
        return None


def calibrate(device: str, dtype: str, threads: int) -> Calibration:
    """Measure, in a process of its own, and keep it. MachineError where that fails."""
    command = [sys.executable, "-m", "lorafit.bench.calibrate", dtype]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S,
                              env=os.environ | {"OMP_NUM_THREADS": str(threads)})
        values = json.loads(done.stdout.strip().splitlines()[-1])
        found = _of(values)
    except (OSError, subprocess.SubprocessError, ValueError, TypeError, KeyError,
            IndexError) as error:
        raise MachineError(f"this device could not be measured: {error}\n    plan without "
                           "--calibrate") from None
    file = _file(device, dtype, threads)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(asdict(found)), encoding="utf-8")
    partial.replace(file)
    return found


def by_sheet(name: str) -> Calibration | None:
    """From the maker's figures for a GPU, with the range that training reaches; None where it is
    not listed."""
    sheet = next((rates for model, rates in _SHEETS.items() if model in name), None)
    if sheet is None:
        return None
    slow, fast = EFFICIENCY
    middle = (slow + fast) / 2
    flops, moved = sheet[0] * middle, 0.7 * sheet[1]
    return Calibration(
        ((1024, 0.6 * flops), (4096, flops)), 0.1, 0.2 * flops, 0.6 * flops, moved, moved / 4, 6e-6,
        f"data sheet of {name}, at {slow:.0%} to {fast:.0%} of its rate",
        (middle / fast, middle / slow))


def _of(values: dict[str, object]) -> Calibration:
    fields = dict(values)
    for key in ("matrices", "uncertainty"):
        if key in fields:
            given = fields[key]
            assert isinstance(given, Sequence)
            fields[key] = tuple(tuple(v) if isinstance(v, list) else v for v in given)
    return Calibration(**fields)  # type: ignore[arg-type]


def _file(device: str, dtype: str, threads: int) -> Path:
    """Under a name that changes with the machine and whatever rates depend on."""
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = ""
    key = json.dumps([device, dtype, threads, torch, platform.machine(), platform.node(),
                      _processor()])
    digest = hashlib.blake2b(key.encode(), digest_size=10).hexdigest()
    return cache_directory() / "calibration" / f"{digest}.json"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines
                 if line.startswith("model name")), "")
