"""The machine that is measured: its clock, its memory, what it is made of."""

import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorafit import __version__
from lorafit.plan.step_time import SHEETS
from lorafit.processor import processor_name

_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "numpy")


def now_s(device: torch.device) -> float:
    """Seconds of a clock, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def available_bytes(device: torch.device) -> int | None:
    """Memory that can still be had; None where nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines
                 if line.startswith("MemAvailable:")), None)


def storage_bytes(tensors: list[Tensor]) -> int:
    """Memory of tensors, where some may share it."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                for t in tensors}.values())


def held_tensors(model: nn.Module) -> list[Tensor]:
    """Everything that a model keeps: parameters, buffers, and constants of quantisation."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            tensors.append(state.absmax)
            state = state.state2
    return [tensor for tensor in tensors if isinstance(tensor, Tensor)]


def sheet_flops(device: torch.device, dtype: str) -> float | None:
    """FLOP/s of matrix products by the data sheet; None for devices and dtypes not listed."""
    if device.type != "cuda" or dtype == "float32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for model, flops in SHEETS.items() if model in name), None)


class MatrixRate:
    """FLOP/s of the fastest product of two square matrices seen so far.

    Asked for in every round, so that a machine that is slowed down for a while is not called slow.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.size = 8192 if device.type == "cuda" else 2048
        self._device = device
        self._a, self._b, self._out = (torch.randn(self.size, self.size, device=device).to(dtype)
                                       for _ in range(3))
        self._fastest_s = float("inf")
        self.sample()

    @property
    def flops_per_s(self) -> float:
        return 2 * self.size**3 / self._fastest_s

    def sample(self) -> None:
        for b in (self._b, self._b.t()):  # libraries like one of the two better
            started = now_s(self._device)
            torch.mm(self._a, b, out=self._out)
            self._fastest_s = min(self._fastest_s, now_s(self._device) - started)


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, threads and versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    versions = {"lorafit": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"device": str(device), "name": name, "system": platform.platform(),
            "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "versions": versions}
