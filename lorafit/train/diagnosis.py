"""Where a number that is not finite, or is far too large, comes from: layer, rows, weights.

Runs only when something went wrong, on each rank for its own micro-batches and without meeting the
others, so it may take a few forward passes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorafit.data.batches import Batch, collate
from lorafit.data.feed import StepExamples
from lorafit.data.packing import Layout, MicroBatch
from lorafit.model.parts import local_part
from lorafit.train.step import stream_seed
from lorafit.train.strategy.strategy import Strategy

_NAMED = 3


@dataclass(frozen=True)
class Suspect:
    """What looks into the micro-batches of a step. module: the summed loss, not wrapped. adapted:
    the model in it. position: of micro-batch k among all ranks'."""

    strategy: Strategy
    module: nn.Module
    adapted: nn.Module
    examples: StepExamples
    layout: Layout
    pad_id: int
    seed: int
    step: int
    position: Callable[[int], int]

    def of_loss(self, batches: Sequence[Batch]) -> list[str]:
        """The first layer that puts out a number that is not finite, and the rows that alone give
        such a loss."""
        found: list[str] = []
        for k, batch in enumerate(batches):
            torch.manual_seed(stream_seed(self.seed, self.step, self.position(k),
                                          self.strategy.part))
            layer, loss = self._first_layer(batch)
            if layer is not None:
                found.append(f"first in the output of {layer}")
            elif not torch.isfinite(loss):
                found.append("in the loss itself: every layer's output is finite")
            else:
                continue
            rows = [place for place, alone in self.rows(batch.examples)
                    if not torch.isfinite(torch.tensor(alone))]
            found.append(f"in {several(rows)}" if rows else
                         "in no row alone: rows together, or what is drawn at random")
            break
        return found

    def of_gradient(self) -> list[str]:
        return self._weights("gradient of", lambda p: p.grad)

    def of_weight(self) -> list[str]:
        return self._weights("weight", lambda p: p)

    def rows(self, numbers: Sequence[int]) -> list[tuple[str, float]]:
        """Where each example stands, and its loss in nats per supervised token, without dropout."""
        was_training = self.module.training
        self.module.eval()
        found = []
        with torch.no_grad():
            for i in numbers:
                batch = collate(self.examples.tokens, MicroBatch(((i,),)), self.layout, self.pad_id)
                loss = float(self._loss(self.strategy.mine(batch)))
                found.append((str(self.examples.place(i)), loss / (batch.loss_weight or 1.0)))
        self.module.train(was_training)
        return found

    def _first_layer(self, batch: Batch) -> tuple[str | None, Tensor]:
        found: list[str] = []
        hooks = []
        for name, module in self.adapted.named_modules():
            if name and not any(True for _ in module.children()):
                hooks.append(module.register_forward_hook(_watch(name, found)))
        try:
            with torch.no_grad():
                loss = self._loss(batch)
        finally:
            for hook in hooks:
                hook.remove()
        if self.strategy.own is not None:  # the first layer of any rank's slice, on all of them
            order = {name: i for i, (name, _) in enumerate(self.adapted.named_modules())}
            found = sorted(self.strategy.all_of(found), key=order.__getitem__)
        return (found[0] if found else None), loss

    def _loss(self, batch: Batch) -> Tensor:
        """Of a micro-batch, of which `batch` is what this rank computes."""
        loss: Tensor = self.module(**batch.to(self.strategy.device).inputs)
        return self.strategy.sum_slices(loss.detach())

    def _weights(self, what: str, tensor: Callable[[nn.Parameter], Tensor | None]) -> list[str]:
        names = [name for name, p in self.adapted.named_parameters() if p.requires_grad
                 and (value := tensor(p)) is not None
                 and not torch.isfinite(local_part(value)).all()]
        return [f"{what} {several(names)}"] if names else []


def _watch(name: str, found: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor) and first.is_floating_point() and not found \
                and not torch.isfinite(first).all():
            found.append(name)

    return note


def several(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
