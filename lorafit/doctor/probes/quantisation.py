"""bitsandbytes: weights in four and eight bits and its optimizer, beside references of our own."""

import importlib.util
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from lorafit.doctor.finding import Absent, Finding, Section, first_line
from lorafit.doctor.probes.compared import drawn, furthest
from lorafit.doctor.probes.torch_here import usable_devices

_INPUTS, _OUTPUTS, _TOKENS, _BLOCK = 128, 256, 16, 64
# The quantiles that NF4 is made of (arXiv 2305.14314, appendix E).
_NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0)


def library(section: Section) -> Iterator[Finding]:
    """Whether it can be imported at all."""
    if importlib.util.find_spec("bitsandbytes") is None:
        yield section.note("bitsandbytes", "not installed: bases in 4 and 8 bits, 8-bit AdamW",
                           "pip install 'lorafit[quantization]'")
        raise Absent
    import bitsandbytes  # noqa: F401

    yield section.ok("bitsandbytes", metadata.version("bitsandbytes"))


def four_bits(section: Section) -> Iterator[Finding]:
    """nf4: what a weight becomes, and the gradient through it."""
    import bitsandbytes as bnb

    for device in _devices():
        weight, x, gradient = _numbers()
        layer = bnb.nn.Linear4bit(_INPUTS, _OUTPUTS, bias=False, compute_dtype=torch.float32,
                                  quant_type="nf4", compress_statistics=False)
        layer.load_state_dict({"weight": weight})
        yield _finding(section, "nf4", device, layer, nf4(weight), x, gradient, 1e-5)


def eight_bits(section: Section) -> Iterator[Finding]:
    """int8: inputs are rounded too, so more is allowed."""
    import bitsandbytes as bnb

    for device in _devices():
        weight, x, gradient = _numbers()
        layer = bnb.nn.Linear8bitLt(_INPUTS, _OUTPUTS, bias=False, has_fp16_weights=False,
                                    threshold=6.0)
        layer.load_state_dict({"weight": weight})
        yield _finding(section, "int8", device, layer, weight, x, gradient, 3e-2)


def optimizer(section: Section) -> Iterator[Finding]:
    """Steps of AdamW in 8 bits beside torch's: the direction is the same, roughly."""
    import bitsandbytes as bnb

    for device in _devices():
        try:
            start, gradients = drawn(128, 64).float(), [drawn(128, 64, seed=i).float()
                                                        for i in range(1, 4)]
            moved = []
            for kind in (torch.optim.AdamW, bnb.optim.AdamW8bit):
                p = nn.Parameter(start.clone().to(device))
                steps: Any = kind([p], lr=1e-2, weight_decay=0.0)
                for g in gradients:
                    p.grad = g.to(device)
                    steps.step()
                moved.append(p.detach().cpu() - start)
            off = furthest(moved[1:], moved[:1])
        except Exception as error:
            yield section.problem(f"8-bit AdamW on {device}", first_line(error),
                                  "set training.optimizer=adamw")
            continue
        if off <= 0.1:
            yield section.ok(f"8-bit AdamW on {device}", f"three steps, off torch's by {off:.0e}")
        else:
            yield section.problem(f"8-bit AdamW on {device}", f"its steps are {off:.0e} from those "
                                  "of torch's AdamW (at most 1e-01)",
                                  "set training.optimizer=adamw")


def nf4(weight: Tensor) -> Tensor:
    """What is left of a weight: the nearest value of the table, by blocks of 64 in order."""
    blocks = weight.double().reshape(-1, _BLOCK)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    table = torch.tensor(_NF4, dtype=torch.float64)
    nearest = ((blocks / largest)[:, :, None] - table).abs().argmin(dim=-1)
    return (table[nearest] * largest).reshape(weight.shape)


def _numbers() -> tuple[Tensor, Tensor, Tensor]:
    return (drawn(_OUTPUTS, _INPUTS, seed=1).float() / _INPUTS**0.5,
            drawn(_TOKENS, _INPUTS, seed=2).float(), drawn(_TOKENS, _OUTPUTS, seed=3).float())


def _finding(section: Section, name: str, device: str, layer: Any, wanted: Tensor, x: Tensor,
             gradient: Tensor, limit: float) -> Finding:
    """Output and gradient of the input beside those of the weight as it should have become."""
    from lorafit.model.base import keep_weights_as_they_are

    name = f"{name} on {device}"
    try:
        layer = layer.to(device).train()
        layer.weight.requires_grad_(False)
        keep_weights_as_they_are(layer)
        dtype = torch.float32 if name.startswith("nf4") or device == "cpu" else torch.float16
        given = x.to(device, dtype).requires_grad_()
        y = layer(given)
        (back,) = torch.autograd.grad(y, given, gradient.to(device, y.dtype))
        off = furthest([y, back], [x.double() @ wanted.double().t(),
                                   gradient.double() @ wanted.double()])
    except Exception as error:
        return section.problem(name, first_line(error), "set model.quantization=none")
    if off <= (limit if dtype == torch.float32 else max(limit, 5e-3)):
        return section.ok(name, f"quantised, forward and backward, off the reference by {off:.0e}")
    return section.problem(name, f"is {off:.0e} from the reference (at most {limit:.0e})",
                           "reinstall bitsandbytes, or set model.quantization=none")


def _devices() -> list[str]:
    return [device for device in usable_devices() if device != "mps"]
