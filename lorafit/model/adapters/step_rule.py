"""What a few methods do at each step beside the optimizer's update."""

from typing import Any, Protocol

from torch import Tensor

from lorafit.model.adapters.adalora import AdaLoraRule, is_adalora


class StepRule(Protocol):
    """Called by the training step, on every rank alike."""

    def add_gradients(self) -> None:
        """Add the gradient of a penalty to gradients that are the mean's already."""

    def after_update(self, step: int) -> None:
        """Called after the update of step `step` (from 1), before gradients are dropped."""

    def state(self) -> dict[str, Tensor]:
        """What has to be kept to go on exactly."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""


def step_rule(adapted: Any) -> StepRule | None:
    """The rule of an adapter's method; None for those that have none."""
    return AdaLoraRule(adapted) if is_adalora(adapted) else None
