"""lorafit's own kernels on each device, beside their plain references in float64."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lorafit.doctor.finding import Finding, Section, first_line
from lorafit.doctor.probes.compared import DTYPES, LIMITS, drawn, furthest, short
from lorafit.doctor.probes.torch_here import usable_devices
from lorafit.kernels.cross_entropy import chunked_cross_entropy, reference_cross_entropy
from lorafit.kernels.experts import ExpertWeight, Gate, grouped_experts, reference_experts
from lorafit.kernels.gated_mlp import ACTIVATIONS, gated_mlp, reference_gated_mlp
from lorafit.kernels.lora_linear import Projection, lora_linear, reference_lora_linear
from lorafit.kernels.packed_attention import (
    Documents,
    packed_attention,
    reference_packed_attention,
)
from lorafit.kernels.rms_norm import reference_rms_norm, rms_norm
from lorafit.kernels.rotary import reference_rotate, rotate

_TOKENS, _WIDTH, _INNER, _RANK, _EXPERTS = 24, 64, 96, 4, 3
_LENGTHS = (7, 17)

# Outputs of a function of differentiable numbers.
_Call = Callable[..., Sequence[Tensor]]


def packed(section: Section) -> Iterator[Finding]:
    """Attention within documents that share a row."""
    for device in usable_devices():
        yield _on(section, "packed attention", device, {"packed attention": _attention})


def fast_path(section: Section) -> Iterator[Finding]:
    """Every other kernel, in one line a device."""
    for device in usable_devices():
        yield _on(section, "fast path", device, {
            "linear layers": _linear, "gated MLP": _mlp, "experts": _experts_case,
            "loss": _loss, "norm": _norm, "rotation": _rotation})


def _on(section: Section, name: str, device: str,
        cases: dict[str, Callable[[torch.dtype], tuple[list[Tensor], _Call, _Call]]]) -> Finding:
    far, wrong = [], []
    for dtype in DTYPES:
        furthest_of_all = 0.0
        for kernel, case in cases.items():
            numbers, ours, reference = case(dtype)
            wanted = _run([t.double() for t in numbers], reference)
            try:
                off = furthest(_run([t.to(device) for t in numbers], ours), wanted)
            except Exception as error:
                wrong.append(f"{kernel} in {short(dtype)} fails: {first_line(error)}")
                continue
            furthest_of_all = max(furthest_of_all, off)
            if not off <= LIMITS[dtype]:
                wrong.append(f"{kernel} in {short(dtype)} is {off:.0e} from its reference")
        far.append(f"{short(dtype)} {furthest_of_all:.0e}")
    name = f"{name} on {device}"
    if wrong:
        return section.problem(name, "; ".join(wrong), "training compares again and takes the "
                               "plain path, but something is wrong with this device or this torch")
    how_many = f"{len(cases)} kernels, " if len(cases) > 1 else ""
    return section.ok(name, f"{how_many}forward and backward, off the references: {', '.join(far)}")


def _run(numbers: list[Tensor], call: _Call) -> list[Tensor]:
    """Outputs and gradients of all numbers that outputs depend on. Gradients of outputs are drawn,
    the same for both sides."""
    given = [t.clone().requires_grad_() for t in numbers]
    outputs = list(call(*given))
    directions = [drawn(*y.shape, seed=9).to(y.device, y.dtype) for y in outputs]
    gradients = torch.autograd.grad(outputs, given, directions, allow_unused=True)
    return [*outputs, *(g for g in gradients if g is not None)]


def _attention(dtype: torch.dtype) -> tuple[list[Tensor], _Call, _Call]:
    numbers = [drawn(1, heads, _TOKENS, 16, seed=heads).to(dtype) for heads in (4, 2, 2)]

    def documents(q: Tensor) -> Documents:
        return Documents(_LENGTHS, torch.tensor([0, _LENGTHS[0], _TOKENS], dtype=torch.int32,
                                                device=q.device))

    return (numbers, lambda q, k, v: [packed_attention(q, k, v, documents(q))],
            lambda q, k, v: [reference_packed_attention(q, k, v, documents(q))])


def _projections(weight: Tensor, a: Tensor, b: Tensor) -> list[Projection]:
    return [Projection(weight.detach, a, b, 2.0)]


def _linear(dtype: torch.dtype) -> tuple[list[Tensor], _Call, _Call]:
    numbers = [drawn(_TOKENS, _WIDTH, seed=1), drawn(_INNER, _WIDTH, seed=2) / 8,
               drawn(_RANK, _WIDTH, seed=3) / 8, drawn(_INNER, _RANK, seed=4) / 4]
    return ([t.to(dtype) for t in numbers],
            lambda x, w, a, b: lora_linear(x, _projections(w, a.float(), b.float())),
            lambda x, w, a, b: reference_lora_linear(x, _projections(w, a, b)))


def _mlp(dtype: torch.dtype) -> tuple[list[Tensor], _Call, _Call]:
    numbers = [drawn(_TOKENS, _WIDTH, seed=1)]
    for seed, (outputs, inputs) in enumerate(((_INNER, _WIDTH), (_INNER, _WIDTH),
                                              (_WIDTH, _INNER))):
        numbers += [drawn(outputs, inputs, seed=10 * seed + 2) / inputs**0.5,
                    drawn(_RANK, inputs, seed=10 * seed + 3) / inputs**0.5,
                    drawn(outputs, _RANK, seed=10 * seed + 4) / 4]

    def call(function: Callable[..., Tensor], convert: Callable[[Tensor], Tensor]) -> _Call:
        def of(x: Tensor, *rest: Tensor) -> Sequence[Tensor]:
            layers = [_projections(rest[i], convert(rest[i + 1]), convert(rest[i + 2]))[0]
                      for i in (0, 3, 6)]
            return [function(x, *layers, ACTIVATIONS["silu"])]
        return of

    return ([t.to(dtype) for t in numbers], call(gated_mlp, Tensor.float),
            call(reference_gated_mlp, lambda t: t))


def _experts_case(dtype: torch.dtype) -> tuple[list[Tensor], _Call, _Call]:
    numbers = [drawn(_TOKENS, _WIDTH, seed=1), drawn(_TOKENS, 2, seed=2).softmax(-1)]
    for seed, (outputs, inputs) in enumerate(((2 * _INNER, _WIDTH), (_WIDTH, _INNER))):
        numbers += [drawn(_EXPERTS, inputs, outputs, seed=10 * seed + 3) / inputs**0.5,
                    drawn(_EXPERTS, _RANK, inputs, seed=10 * seed + 4) / inputs**0.5,
                    drawn(_EXPERTS, _RANK, outputs, seed=10 * seed + 5) / 4]
    index = torch.arange(2 * _TOKENS).reshape(_TOKENS, 2) % _EXPERTS

    def gate(z: Tensor) -> Tensor:
        first, second = z.chunk(2, dim=-1)
        return F.silu(first) * second

    def call(function: Callable[..., Tensor], convert: Callable[[Tensor], Tensor]) -> _Call:
        def of(x: Tensor, weights: Tensor, *rest: Tensor) -> Sequence[Tensor]:
            layers = [ExpertWeight(rest[i].detach(), None, convert(rest[i + 1]),
                                   convert(rest[i + 2]), 2.0) for i in (0, 3)]
            return [function(x, index.to(x.device), weights,
                             Gate(gate, ACTIVATIONS["silu"]), *layers)]
        return of

    return ([t.to(dtype) for t in numbers], call(grouped_experts, Tensor.float),
            call(reference_experts, lambda t: t))


def _loss(dtype: torch.dtype) -> tuple[list[Tensor], _Call, _Call]:
    numbers = [drawn(_TOKENS, _WIDTH, seed=1), drawn(500, _WIDTH, seed=2) / 8]
    targets = torch.arange(_TOKENS) * 7 % 500
    return ([t.to(dtype) for t in numbers],
            lambda x, w: [chunked_cross_entropy(x, w.detach(), targets.to(x.device))],
            lambda x, w: [reference_cross_entropy(x, w.detach(), targets)])


def _norm(dtype: torch.dtype) -> tuple[list[Tensor], _Call, _Call]:
    numbers = [drawn(_TOKENS, _WIDTH, seed=1), 1 + drawn(_WIDTH, seed=2) / 8]
    return ([t.to(dtype) for t in numbers], lambda x, w: [rms_norm(x, w.detach(), 1e-6)],
            lambda x, w: [reference_rms_norm(x, w.detach(), 1e-6)])


def _rotation(dtype: torch.dtype) -> tuple[list[Tensor], _Call, _Call]:
    angles = torch.outer(torch.arange(_TOKENS), 1 / 10 ** torch.arange(0, 2, 1 / 8)).repeat(1, 2)
    angles = angles.double()

    def call(function: Callable[..., Tensor]) -> _Call:
        return lambda x: [function(x, angles.cos().to(x), angles.sin().to(x))]

    return ([drawn(1, 2, _TOKENS, 32, seed=1).to(dtype)], call(rotate), call(reference_rotate))
