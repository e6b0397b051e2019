"""The learning rate as a pure function of the step."""

import math

from lorafit.recipe.schema import Training


def warmup_steps(training: Training, total_steps: int) -> int:
    """Steps of warm-up; a setting below 1 is a fraction of all steps."""
    if training.warmup < 1:
        return round(training.warmup * total_steps)
    return int(training.warmup)


def learning_rate_at(step: int, total_steps: int, training: Training, peak: float) -> float:
    """Learning rate of optimizer step `step` (from 0).

    Warm-up rises linearly and reaches the peak at its last step. Linear and cosine then fall to
    `min_learning_rate`, which the last step of the run is one step short of.
    """
    warmup = warmup_steps(training, total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if training.schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, total_steps - warmup)
    if training.schedule == "linear":
        share = 1 - progress
    else:
        share = 0.5 * (1 + math.cos(math.pi * progress))
    return training.min_learning_rate + (peak - training.min_learning_rate) * share
