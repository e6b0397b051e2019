"""The one sentence that a study of regret ends with."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorafit.study.regret import ArmResult


# Of what full fine-tuning gained over the base: an interval that is wider says too little.
_COARSE = 0.05


def sentence(arms: Sequence["ArmResult"], rank: int | None, start_loss: float | None) -> str:
    """About the arm of the recipe's rank, or where that was not tried, the best one.

    "Within noise" is said where the 95 % interval of the difference, paired by seed, holds 0, and
    reaches to either side by no more than a twentieth of what full fine-tuning gained over the
    base (start_loss). One that holds 0 and is wider tells nothing, which is said.
    """
    full = next(arm for arm in arms if arm.rank is None)
    done = [arm for arm in arms if arm.rank is not None and arm.loss is not None]
    if full.loss is None or not done:
        return "Nothing can be said yet: full fine-tuning and one rank must have been trained."
    arm = next((each for each in done if each.rank == rank),
               min(done, key=lambda each: each.loss.mean if each.loss else 0.0))
    gained = None if start_loss is None else start_loss - full.loss.mean
    parts = [_loss(arm, gained)]
    if arm.learning_rate and full.learning_rate:
        parts.append(f"the best learning rate of {arm.name} is {arm.learning_rate:.2g} "
                     f"({arm.learning_rate / full.learning_rate:.2g}× full's)")
    if arm.step_s and full.step_s:
        parts.append(f"a step of it takes {arm.step_s / full.step_s:.2f}× the time of a full one "
                     "here")
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def _loss(arm: "ArmResult", gained: float | None) -> str:
    found = arm.difference
    if found is None:
        return f"{arm.name} and full fine-tuning have no seed in common yet"
    amount = f"{abs(found.mean):.4f}"
    if found.half_width is None:
        side = "higher" if found.mean > 0 else "lower"
        return (f"{arm.name} ends {amount} nats a token {side} than full fine-tuning on one seed, "
                "which says nothing of noise")
    amount += f" ± {found.half_width:.4f} nats a token"
    if found.within_noise and gained is not None and found.half_width > _COARSE * gained:
        return (f"{found.seeds} seeds are too few to tell {arm.name} from full fine-tuning, which "
                f"would {'gain' if found.mean > 0 else 'lose'} {amount}")
    if found.within_noise:
        return (f"{arm.name} is within noise of full fine-tuning, which would "
                f"{'gain' if found.mean > 0 else 'lose'} {amount} ({found.seeds} seeds)")
    share = "" if gained is None or gained <= 0 else (
        f": {abs(found.mean) / gained:.1%} of what full fine-tuning gained over the base")
    if found.mean > 0:
        return f"full fine-tuning gains {amount} over {arm.name} ({found.seeds} seeds){share}"
    return f"{arm.name} is better than full fine-tuning by {amount} ({found.seeds} seeds){share}"
