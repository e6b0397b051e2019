"""Attention by torch and flash-attn, beside the plain formula in float64."""

import importlib.util
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lorafit.doctor.finding import Finding, Section, first_line
from lorafit.doctor.probes.compared import DTYPES, LIMITS, drawn, furthest, short
from lorafit.doctor.probes.torch_here import usable_devices

_HEADS, _TOKENS, _WIDTH = 4, 48, 64


def scaled_dot_product(section: Section) -> Iterator[Finding]:
    """torch's own, causal."""
    for device in usable_devices():
        yield _compared(section, "SDPA", device, DTYPES, lambda q, k, v:
                        F.scaled_dot_product_attention(q, k, v, is_causal=True))


def flex(section: Section) -> Iterator[Finding]:
    """torch's flexible attention, forward only: lorafit does not use it, models of others may."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    for device in usable_devices():
        try:
            mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, _TOKENS, _TOKENS,
                                     device=device)
            q, k, v = (t.float() for t in _numbers())
            out = flex_attention(q.to(device), k.to(device), v.to(device), block_mask=mask)
            off = furthest([out], [_reference(q.double(), k.double(), v.double())])
        except Exception as error:
            yield section.note(f"flex on {device}", f"does not run: {first_line(error)}")
            continue
        if off <= LIMITS[torch.float32]:
            yield section.ok(f"flex on {device}", f"forward, off float64: float32 {off:.0e}")
        else:
            yield section.warning(f"flex on {device}", f"is {off:.0e} from float64",
                                  "nothing of lorafit uses it")


def flash(section: Section) -> Iterator[Finding]:
    """flash-attn, where it is installed."""
    if importlib.util.find_spec("flash_attn") is None:
        return
    from flash_attn import flash_attn_func

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = flash_attn_func(*(t.transpose(1, 2) for t in (q, k, v)), causal=True)
        return out.transpose(1, 2)

    gpus = [device for device in usable_devices() if device.startswith("cuda")]
    if not gpus:
        yield section.note("flash-attn", "installed; it runs on GPUs only")
    for device in gpus:
        yield _compared(section, "flash-attn", device, (torch.bfloat16, torch.float16), call)


def _numbers() -> list[Tensor]:
    return [drawn(1, _HEADS, _TOKENS, _WIDTH, seed=seed) for seed in range(4)][:3]


def _reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(2, 3) / _WIDTH**0.5
    ahead = torch.ones(_TOKENS, _TOKENS, dtype=torch.bool).triu(1)
    return scores.masked_fill(ahead, float("-inf")).softmax(-1) @ v


def _compared(section: Section, name: str, device: str, dtypes: tuple[torch.dtype, ...],
              attention: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Finding:
    """Output and gradients of q, k and v."""
    far, wrong = [], []
    for dtype in dtypes:
        given = [t.to(dtype) for t in _numbers()]

        def run(numbers: list[Tensor],
                call: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
            q, k, v = (t.clone().requires_grad_() for t in numbers)
            out = call(q, k, v)
            return [out, *torch.autograd.grad(out.sum(dim=-1).square().sum(), [q, k, v])]

        wanted = run([t.double() for t in given], _reference)
        try:
            off = furthest(run([t.to(device) for t in given], attention), wanted)
        except Exception as error:
            wrong.append(f"{short(dtype)} fails: {first_line(error)}")
            continue
        far.append(f"{short(dtype)} {off:.0e}")
        if not off <= 2 * LIMITS[dtype]:  # of a square, whose relative error is twice as large
            wrong.append(f"{short(dtype)} is {off:.0e} from float64")
    name = f"{name} on {device}"
    if wrong:
        return section.problem(name, "; ".join(wrong), "set model.attention=eager")
    return section.ok(name, f"forward and backward, off float64: {', '.join(far)}")
