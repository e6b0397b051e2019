"""A small LoRA layer forward and backward on each device, in each dtype, beside float64."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lorafit.doctor.finding import Finding, Section, first_line
from lorafit.doctor.probes.compared import DTYPES, LIMITS, drawn, furthest, short
from lorafit.doctor.probes.torch_here import usable_devices

_TOKENS, _INPUTS, _OUTPUTS, _RANK = 32, 256, 128, 8


def on_each_device(section: Section) -> Iterator[Finding]:
    """A line for each device: how far each dtype is off."""
    for device in usable_devices():
        far: list[str] = []
        wrong: list[str] = []
        for dtype in DTYPES:
            # The rounded numbers are what is to be computed with, so they are the reference's too.
            given = [t.to(dtype) for t in _numbers()]
            wanted = _forward_and_backward([t.double() for t in given])
            try:
                got = _forward_and_backward([t.to(device) for t in given])
                off = furthest(got, wanted)
            except Exception as error:
                wrong.append(f"{short(dtype)} fails: {first_line(error)}")
                continue
            far.append(f"{short(dtype)} {off:.0e}")
            if not off <= LIMITS[dtype]:
                wrong.append(f"{short(dtype)} is {off:.0e} from float64 (at most "
                             f"{LIMITS[dtype]:.0e})")
        name = f"LoRA on {device}"
        if wrong:
            yield section.problem(name, "; ".join(wrong), "do not train on this device in that "
                                  "dtype: set model.dtype, or LORAFIT_DEVICE=cpu")
        else:
            yield section.ok(name, f"forward and backward, off float64: {', '.join(far)}")


def _numbers() -> list[Tensor]:
    return [drawn(_TOKENS, _INPUTS, seed=1), drawn(_OUTPUTS, _INPUTS, seed=2) / _INPUTS**0.5,
            drawn(_RANK, _INPUTS, seed=3) / _INPUTS**0.5, drawn(_OUTPUTS, _RANK, seed=4),
            drawn(_TOKENS, _OUTPUTS, seed=5)]


def _forward_and_backward(numbers: list[Tensor]) -> list[Tensor]:
    """Output, and the gradients of the input, A and B."""
    x, weight, a, b, gradient = numbers
    x, a, b = (t.clone().requires_grad_() for t in (x, a, b))
    y = F.linear(x, weight) + 2 * F.linear(F.linear(x, a), b)
    return [y, *torch.autograd.grad(y, [x, a, b], gradient)]
