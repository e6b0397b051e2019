"""Measures how fast this device computes: `python -m lorafit.bench.calibrate DTYPE`.

Prints one line of JSON, the fields of `plan/calibration.py: Calibration`. Each rate is the median
of several measurements, as a step meets the machine, not the fastest.
"""

import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from lorafit.bench.machine import now_s
from lorafit.kernels.thin import add_widened, narrow
from lorafit.model.device import find_device

_WIDTHS = (256, 512, 1024, 2048)
_TOKENS = 512
_RANK = 16
_EACH_S = 0.25


def rates(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Measured on a device that does nothing else."""
    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    def matrix(tokens: int, width: int) -> float:
        x, w = drawn(tokens, width), drawn(width, width)
        forward = _seconds(lambda: F.linear(x, w), device)
        back = _seconds(lambda: x @ w, device)
        return 4 * tokens * width**2 / (forward + back)

    widths = _WIDTHS if device.type == "cpu" else (*_WIDTHS, 4096)
    matrices = [(width, matrix(_TOKENS, width)) for width in widths]
    few = matrix(32, 1024) / dict(matrices)[1024]
    x, a = drawn(_TOKENS, 1024), torch.randn(_RANK, 1024, device=device)
    h = narrow(x, a)
    thin = 4 * _TOKENS * 1024 * _RANK / (
        _seconds(lambda: narrow(x, a), device) + _seconds(lambda: add_widened(x, h, a, 1e-9),
                                                          device))
    q = drawn(1, 8, _TOKENS, 64)
    attention = 2 * 8 * 64 * _TOKENS**2 / _seconds(
        lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True), device)
    long = drawn(2**22)
    out = torch.empty_like(long)
    moved = 3 * long.nbytes / _seconds(lambda: torch.add(long, long, out=out), device)
    codes = torch.randint(0, 16, (2**20,), device=device)
    table = drawn(16)
    dequantised = codes.numel() / _seconds(lambda: table[codes], device)
    small = drawn(8)
    return {"matrices": matrices, "few_tokens": min(1.0, few), "thin_flops_per_s": thin,
            "attention_flops_per_s": attention, "bytes_per_s": moved,
            "dequantised_per_s": dequantised, "launch_s": _seconds(lambda: small + small, device),
            "source": f"measured on this {device.type}"}


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    """The median over rounds of a few calls each."""
    call()
    rounds, spent = 1, 0.0
    times: list[float] = []
    while spent < _EACH_S or len(times) < 3:
        started = now_s(device)
        for _ in range(rounds):
            call()
        took = now_s(device) - started
        if took < _EACH_S / 20 and rounds < 10_000:
            rounds *= 4
            spent += took
            continue
        times.append(took / rounds)
        spent += took
    return statistics.median(times)


def main() -> None:
    dtype = getattr(torch, sys.argv[1])
    device, _ = find_device()
    with torch.no_grad():
        print(json.dumps(rates(dtype, device)))


if __name__ == "__main__":
    main()
