"""Whether a fast form computes what the plain one does, on this device and on these very weights.

A module is given random inputs and random gradients, once as it was and once as it is; outputs and
gradients must be the same but for rounding. Inputs are small: it takes milliseconds.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorafit.kernels.packed_attention import Documents
from lorafit.model.fast.attention import NAME, packed_inputs
from lorafit.model.parts import local_part

TOKENS = 7

# Largest relative difference (norms) of an output or a gradient. Rounding alone: 1e-6 in float32,
# 5e-3 in bfloat16, 8e-4 in float16, on 2 to 4,096 inputs.
LIMITS = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}


def outcome(calls: Sequence[nn.Module], width: int, dtype: torch.dtype, device: torch.device,
            called: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """What modules make of one input (1, TOKENS, width): their outputs, then the gradients of the
    input and of all that is trained in them. The same input at each call. `called` calls the one
    module there is, where it takes more than the input."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    x = drawn(1, TOKENS, width).requires_grad_()
    trained = list({id(p): p for module in calls for p in module.parameters()
                    if p.requires_grad}.values())
    with torch.enable_grad():
        outputs = [module(x) for module in calls] if called is None else [called(x)]
        gradients = torch.autograd.grad(outputs, [x, *trained], [drawn(*y.shape) for y in outputs],
                                        allow_unused=True)
    return [*(y.detach() for y in outputs),
            *(torch.zeros_like(p) if g is None else g
              for p, g in zip([x, *trained], gradients, strict=True))]


def difference(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest relative difference of a pair, by norms. Not finite where a value is not."""
    largest = 0.0
    for a, b in zip(got, wanted, strict=True):
        norm = float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))
        if not norm <= largest:
            largest = norm
    return largest


def agrees(got: Callable[[], Sequence[Tensor]], wanted: Sequence[Tensor], dtype: torch.dtype
           ) -> str | None:
    """None when what `got` computes is `wanted` but for rounding, otherwise what is wrong."""
    try:
        found = difference(got(), wanted)
    except (RuntimeError, TypeError, AttributeError, ValueError, LookupError) as error:
        return f"fails on this device: {(str(error) or type(error).__name__).splitlines()[0]}"
    if found <= LIMITS.get(dtype, 1e-4):
        return None
    return f"disagrees with the plain path on this device by {found:.1e}"


@contextmanager
def stirred(adapted: nn.Module) -> Iterator[None]:
    """A model that evaluates, with adapters that do something: a fresh B is zero, which would hide
    an error in everything before it. Afterwards all is as it was, generators too."""
    b = [local_part(p) for name, p in adapted.named_parameters()
         if ".lora_B." in name and p.requires_grad]
    kept = [p.detach().clone() for p in b]
    modes = [(module, module.training) for module in adapted.modules()]
    generator = torch.Generator().manual_seed(1)
    adapted.eval()
    with torch.no_grad():
        for p in b:
            noise = torch.randn(p.shape, generator=generator) * (0.1 / p.shape[-1] ** 0.5)
            p.add_(noise.to(p.device, p.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(b, kept, strict=True):
                p.copy_(value)
        for module, mode in modes:
            module.training = mode


def small_row(model: Any, device: torch.device) -> dict[str, Any]:
    """A short row as the model's forward pass takes it: two documents, where its attention does."""
    generator = torch.Generator().manual_seed(2)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (1, TOKENS), generator=generator).to(device)
    if model.config._attn_implementation != NAME:
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    lengths = (3, TOKENS - 3)
    documents = Documents(lengths, torch.tensor([0, 3, TOKENS], dtype=torch.int32, device=device))
    positions = torch.cat([torch.arange(n) for n in lengths])[None].to(device)
    return {"input_ids": ids, "position_ids": positions, **packed_inputs(ids, documents)}
