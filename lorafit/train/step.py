"""One optimizer step, exact: the gradient is that of the mean over every supervised token.

Losses are summed over micro-batches and ranks and divided once, by the weight of all supervised
tokens of the step (their number, where no message has a weight of its own), so neither the layout
of micro-batches nor the number of ranks changes the result.
Dividing the gradients last (they belong to the adapter and are small) has a second use: the
backward pass of a float16 base runs at the size of a sum, which does not underflow.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lorafit.data.batches import Batch
from lorafit.errors import DivergedError
from lorafit.model.adapters.step_rule import StepRule


@dataclass(frozen=True)
class StepResult:
    """What a step did. `loss` is in nats per supervised token; counts are over all ranks.

    grad_norm: Euclidean norm before clipping. tokens: without padding; computed_tokens: with it.
    stop_signal: the highest signal number that a rank has received, 0 for none.
    """

    loss: float
    grad_norm: float
    supervised_tokens: int
    tokens: int
    computed_tokens: int
    stop_signal: int


def train_step(
    accelerator: Any, module: nn.Module, optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Batch], *, step: int, learning_rate: float, seed: int,
    max_grad_norm: float | None, stop_signal: int = 0, rule: StepRule | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> StepResult:
    """Forward, backward and update over this rank's micro-batches of step `step` (from 0).

    Raises DivergedError, before any weight is touched, when the loss or the gradient is not
    finite. `module` returns the summed loss of a micro-batch. `rule` is what the
    adapter's method does beside the update. `meanwhile` is called once all of the backward pass is
    under way, before the one place where this process waits for the device.
    """
    device = accelerator.device
    loss_sum = torch.zeros((), dtype=torch.float32, device=device)
    for k, batch in enumerate(micro_batches):
        # Dropout depends on the step and the micro-batch's place in it alone: an interruption,
        # an evaluation in between or another number of ranks changes nothing.
        position = k * accelerator.num_processes + accelerator.process_index
        torch.manual_seed(stream_seed(seed, step, position))
        inputs = batch.to(device).inputs
        if k + 1 < len(micro_batches):
            with accelerator.no_sync(module):
                loss = module(**inputs)
                accelerator.backward(loss)
        else:
            loss = module(**inputs)
            accelerator.backward(loss)
        loss_sum += loss.detach()
    meanwhile()

    wide = torch.float32 if device.type == "mps" else torch.float64
    counts = torch.tensor(
        [(b.loss_weight, b.supervised_tokens, b.tokens, b.computed_tokens) for b in micro_batches],
        dtype=wide, device=device)
    totals = torch.cat([loss_sum.to(wide)[None], counts.sum(dim=0)])
    totals = accelerator.reduce(totals, reduction="sum")
    signals = accelerator.gather(torch.tensor([stop_signal], device=device))
    total_loss, weight, supervised_tokens, tokens, computed_tokens = totals.tolist()
    weight = weight or 1.0  # nothing supervised: the loss and every gradient are 0

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    # Data-parallel engines average over ranks; the mean over tokens is wanted instead.
    torch._foreach_mul_(gradients, accelerator.num_processes / weight)
    if rule is not None:
        rule.add_gradients()
    limit = float("inf") if max_grad_norm is None else max_grad_norm
    grad_norm = float(accelerator.clip_grad_norm_(parameters, limit))
    loss_per_token = total_loss / weight
    for name, value in (("loss", loss_per_token), ("gradient norm", grad_norm)):
        if not torch.isfinite(torch.tensor(value)):
            optimizer.zero_grad()
            raise DivergedError(f"the {name} of step {step + 1} is {value}; no weight was changed")

    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate_factor", 1.0)
    optimizer.step()
    if rule is not None:
        rule.after_update(step + 1)
    optimizer.zero_grad()
    return StepResult(loss_per_token, grad_norm, int(supervised_tokens), int(tokens),
                      int(computed_tokens), int(signals.max()))


def stream_seed(seed: int, step: int, position: int) -> int:
    """A seed for the random numbers of one micro-batch, unrelated to its neighbours'."""
    text = f"{seed}/{step}/{position}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")
