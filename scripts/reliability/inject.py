"""Faults in the numbers, and in memory, of one chosen training step: put in from outside.

Only calls within a real step count; what a run computes before its first one (trials, evaluations)
is left alone. The same for lorafit and for transformers' Trainer.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any


@dataclass(frozen=True)
class Injection:
    """What goes wrong in step `step` (from 1).

    what: loss, gradient (of the adapter), update (a weight, by the optimizer), weight (after the
    step, before anything is saved), or memory. value: nan, inf or -inf. micro: the micro-batch of
    the step, from 0. rows: memory lasts, from there on, for no more than so many rows at once; 0
    for a single failure. seed: draws the weight.
    """

    what: str
    step: int
    value: str = "nan"
    micro: int = 0
    rows: int = 0
    seed: int = 0
    backward: bool = False
    of_allocator: bool = False


class _Fault:
    """Follows the steps of a run and does what was asked in the chosen one."""

    def __init__(self, injection: Injection) -> None:
        self.asked = injection
        self.step = 0
        self.micro = -1
        self.happened = False

    def begin(self, step: int, optimizer: Any = None) -> None:
        self.step, self.micro = step, -1
        if self.asked.what == "update" and self.is_due() and optimizer is not None:
            self._after_update(optimizer)

    def is_due(self) -> bool:
        return self.step == self.asked.step and not self.happened

    def end(self, parameters: Callable[[], list[Any]]) -> None:
        if self.asked.what == "weight" and self.is_due():
            self._poison(parameters())
        self.step = 0

    def forward(self, module: Any, compute: Callable[[], Any], rows: int) -> Any:
        """The loss of a micro-batch of the step, or what the fault makes of it."""
        import torch

        if not (self.step and torch.is_grad_enabled()):
            return compute()
        self.micro += 1
        here = self.is_due() and self.micro == self.asked.micro
        if self.asked.what == "memory":
            reached = (self.step, self.micro) >= (self.asked.step, self.asked.micro)
            too_large = reached and rows > self.asked.rows > 0
            if too_large or (self.asked.rows == 0 and here):
                self.happened = True
                loss = compute()
                if not self.asked.backward:
                    self._out_of_memory()
                loss.register_hook(lambda gradient: self._out_of_memory())
                return loss
        loss = compute()
        if here and self.asked.what == "loss":
            self.happened = True
            loss = loss * float(self.asked.value)
        if here and self.asked.what == "gradient":
            self.happened = True
            chosen = random.Random(self.asked.seed).choice(_trained(module))
            handle = chosen.register_hook(
                lambda gradient: (handle.remove(), self._spoilt(gradient))[1])
        return loss

    def _spoilt(self, tensor: Any) -> Any:
        spoilt = tensor.contiguous().clone()
        place = random.Random(self.asked.seed + 1).randrange(spoilt.numel())
        spoilt.view(-1)[place] = float(self.asked.value)
        return spoilt

    def _poison(self, parameters: list[Any]) -> None:
        self.happened = True
        chosen = random.Random(self.asked.seed).choice(parameters)
        chosen.data.copy_(self._spoilt(chosen.data))

    def _after_update(self, optimizer: Any) -> None:
        real = optimizer.step

        def step(*given: Any, **named: Any) -> Any:
            result = real(*given, **named)
            self._poison([p for group in optimizer.param_groups for p in group["params"]])
            optimizer.step = real
            return result

        optimizer.step = step

    def _out_of_memory(self) -> None:
        import torch

        if self.asked.of_allocator:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: "
                               "can't allocate memory: you tried to allocate 68719476736 bytes. "
                               "Error code 12 (Cannot allocate memory)")
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB.")


def _trained(module: Any) -> list[Any]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def install(injection: Injection) -> None:
    """Put the fault into this process, before the command runs."""
    fault = _Fault(injection)
    _into_lorafit(fault)
    _into_trainer(fault)


def _into_lorafit(fault: _Fault) -> None:
    import torch

    from lorafit.model.loss import SummedLoss
    from lorafit.train import loop

    real_step, real_forward = loop.train_step, SummedLoss.forward

    @wraps(real_step)
    def train_step(*given: Any, **named: Any) -> Any:
        values = [*given, *named.values()]
        optimizer = next(v for v in values if isinstance(v, torch.optim.Optimizer))
        fault.begin(named["step"] + 1, optimizer)
        try:
            result = real_step(*given, **named)
        except BaseException:
            fault.step = 0  # what looks for the cause is no step
            raise
        fault.end(lambda: [p for group in optimizer.param_groups for p in group["params"]])
        return result

    @wraps(real_forward)
    def forward(self: Any, input_ids: Any, attention_mask: Any, labels: Any,
                position_ids: Any = None, *given: Any, **named: Any) -> Any:
        rows = len(input_ids)
        if position_ids is not None:  # sequences in a row
            rows = int((position_ids == 0).sum())
        return fault.forward(
            self, lambda: real_forward(self, input_ids, attention_mask, labels, position_ids,
                                       *given, **named), rows)

    loop.train_step, SummedLoss.forward = train_step, forward


def _into_trainer(fault: _Fault) -> None:
    from transformers import Trainer

    real_step, real_loss = Trainer.training_step, Trainer.compute_loss

    @wraps(real_step)
    def training_step(self: Any, *given: Any, **named: Any) -> Any:
        if fault.step != self.state.global_step + 1:
            if fault.step:
                fault.end(lambda: _trained(self.model))
            fault.begin(self.state.global_step + 1, self.optimizer)
        return real_step(self, *given, **named)

    @wraps(real_loss)
    def compute_loss(self: Any, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
        return fault.forward(model, lambda: real_loss(self, model, inputs, *given, **named),
                             len(inputs["input_ids"]))

    Trainer.training_step, Trainer.compute_loss = training_step, compute_loss
