"""One optimizer step, exact: the gradient is that of the mean over every supervised token.

Losses are summed over micro-batches and ranks and divided once, by the weight of all supervised
tokens of the step (their number, where no message has a weight of its own), so neither the layout
of micro-batches nor the number of ranks changes the result.
Dividing the gradients last (they belong to the adapter and are small) has a second use: the
backward pass of a float16 base runs at the size of a sum, which does not underflow.
Ranks meet once, after all micro-batches, so one that runs out of memory can begin again alone.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorafit.data.batches import Batch
from lorafit.errors import DivergedError
from lorafit.model.adapters.step_rule import StepRule
from lorafit.model.parts import local_part
from lorafit.train.memory import free_memory, ran_out_of_memory
from lorafit.train.signals import Wish
from lorafit.train.standing import Kind
from lorafit.train.strategy.strategy import Strategy

MOST_TOLD = 64  # ranks whose figures are told


@dataclass(frozen=True)
class StepResult:
    """What a step did. `loss` is in nats per supervised token; counts are over all ranks.

    grad_norm: Euclidean norm before clipping. tokens: without padding; computed_tokens: with it.
    wish: the largest that a rank was asked for. figures: what each rank told, by its number, as far
    as MOST_TOLD.
    """

    loss: float
    grad_norm: float
    supervised_tokens: int
    tokens: int
    computed_tokens: int
    wish: Wish
    figures: Sequence[Sequence[float]] = ()


class NotFinite(DivergedError):
    """A number of a step is not finite, and nothing was changed. what: loss, gradient or weight.

    Raised on every rank, with the gradients still there. wish: as in StepResult.
    """

    def __init__(self, what: str, step: int, value: float, wish: Wish) -> None:
        self.what, self.wish = what, wish
        said = {"loss": f"the loss of step {step + 1} is {value}",
                "gradient": f"the gradient norm of step {step + 1} is {value}",
                "weight": f"a weight is not finite before step {step + 1}"}[what]
        super().__init__(f"{said}; no weight was changed")


def train_step(
    strategy: Strategy, module: nn.Module, optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Batch], *, step: int, learning_rate: float, seed: int,
    max_grad_norm: float | None, wish: Callable[[], Wish] = lambda: Wish.NOTHING,
    rule: StepRule | None = None, meanwhile: Callable[[], None] = lambda: None,
    smaller: Callable[[], Sequence[Batch]] | None = None,
    figures: Callable[[], Sequence[float]] = tuple,
) -> StepResult:
    """Forward, backward and update over this rank's micro-batches of step `step` (from 0).

    `module` returns the summed loss of a micro-batch. `rule` is what the adapter's method does
    beside the update. `meanwhile` is called once all of the backward pass is under way, before the
    one place where this process waits for the device. `wish` is asked there, so that what arrives
    during a step counts in it. `smaller` gives the same rows in smaller micro-batches, after this
    rank ran out of memory; without it the error is raised. `figures`: numbers that ranks tell each
    other, equally many on all; they ride along with the sums. Raises NotFinite, before any weight
    is touched, when the loss, a gradient or a weight is not finite.
    """
    device = strategy.device
    while (loss_sum := backward(strategy, module, micro_batches, step, seed,
                                may_fail=smaller is not None)) is None:
        assert smaller is not None
        optimizer.zero_grad()
        free_memory(device)
        micro_batches = smaller()
    meanwhile()

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    wide = torch.float32 if device.type == "mps" else torch.float64
    counts = torch.tensor(
        [(b.loss_weight, b.supervised_tokens, b.tokens, b.computed_tokens) for b in micro_batches],
        dtype=wide, device=device)
    asked = wish()
    wishes = torch.tensor([asked is each for each in Wish], dtype=wide, device=device)
    told = torch.zeros(min(strategy.ranks, MOST_TOLD), len(ask := figures()), dtype=wide)
    told[strategy.rank:strategy.rank + 1] = torch.tensor(ask, dtype=wide)
    totals = torch.cat([loss_sum.to(wide)[None], _largest(parameters).to(device, wide)[None],
                        counts.sum(dim=0), wishes, told.flatten().to(device)])
    with strategy.standing.reducing(device, "communicating (gradients)"):
        totals = strategy.sum(totals)
        strategy.sum_gradients(parameters)
    strategy.standing.at(Kind.COMPUTE, "optimizer step")
    total_loss, largest, weight, supervised_tokens, tokens, computed_tokens, *rest = \
        totals.tolist()
    wished, of_ranks = rest[:len(Wish)], rest[len(Wish):]
    weight = weight or 1.0  # nothing supervised: the loss and every gradient are 0
    asked = max(each for each, ranks in zip(Wish, wished, strict=True) if ranks)

    gradients = [p.grad for p in parameters if p.grad is not None]
    torch._foreach_mul_([local_part(gradient) for gradient in gradients], 1 / weight)
    if rule is not None:
        rule.add_gradients()
    limit = float("inf") if max_grad_norm is None else max_grad_norm
    grad_norm = float(strategy.clip(parameters, limit))
    loss_per_token = total_loss / weight
    for what, value in (("weight", largest), ("loss", loss_per_token), ("gradient", grad_norm)):
        if not torch.isfinite(torch.tensor(value)):
            raise NotFinite(what, step, value, asked)

    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate_factor", 1.0)
    optimizer.step()
    if rule is not None:
        rule.after_update(step + 1)
    optimizer.zero_grad()
    return StepResult(loss_per_token, grad_norm, int(supervised_tokens), int(tokens),
                      int(computed_tokens), asked,
                      [tuple(of_ranks[at:at + len(ask)]) for at in range(0, len(of_ranks), len(ask))
                       ] if ask else [])


def backward(strategy: Strategy, module: nn.Module, micro_batches: Sequence[Batch], step: int,
             seed: int, *, may_fail: bool) -> Tensor | None:
    """Gradients of this rank's micro-batches, and the sum of their losses, a float32 scalar.

    None where `may_fail` and memory ran out: what the gradients hold is then of no use.
    """
    device = strategy.device
    loss_sum = torch.zeros((), dtype=torch.float32, device=device)
    try:
        for k, batch in enumerate(micro_batches):
            # Dropout depends on the step and the micro-batch's place in it alone: an interruption,
            # an evaluation in between or another number of ranks changes nothing.
            position = k * strategy.shares + strategy.share
            torch.manual_seed(stream_seed(seed, step, position, strategy.part))
            strategy.standing.at(Kind.COMPUTE, "forward and backward", k + 1, len(micro_batches))
            strategy.before_pass(module, is_last=k == len(micro_batches) - 1)
            loss = module(**batch.to(device).inputs)
            loss.backward()
            loss_sum += loss.detach()
    except (RuntimeError, MemoryError) as error:
        if not (may_fail and ran_out_of_memory(error)):
            raise
        return None
    return loss_sum


@torch.no_grad()
def _largest(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The largest magnitudes of what this rank holds of all parameters, added up: not finite if one
    of their numbers is not."""
    held = [part for part in map(local_part, parameters) if part.numel()]
    if not held:
        return torch.zeros(())
    norms = torch._foreach_norm(held, float("inf"))
    return torch.stack([norm.float() for norm in norms]).sum()


def stream_seed(seed: int, step: int, position: int, part: int = 0) -> int:
    """A seed for the random numbers of one micro-batch, or of a slice of its tokens, unrelated to
    its neighbours'."""
    text = f"{seed}/{step}/{position}" + (f"/{part}" if part else "")
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")
