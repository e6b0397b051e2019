"""How long a run takes, from what there is to compute and what this device takes for it."""

import math
from dataclasses import dataclass, replace

from lorafit.plan.calibration import Calibration
from lorafit.plan.shapes import Shapes
from lorafit.plan.trained import Trained
from lorafit.plan.work import Rows, full_fine_tuning, work_of

# What of a GPU's data sheet training reaches: from small models and short rows to large ones.
EFFICIENCY = (0.15, 0.5)
# Products of dense 16-bit matrices, FLOP/s, from the makers' data sheets. The first name that is
# part of the device's counts.
SHEETS = {
    "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12,
    "L40S": 362e12, "RTX 4090": 165e12, "RTX 5090": 210e12, "RTX 3090": 71e12, "A10G": 70e12,
    "A10": 125e12, "L4": 121e12, "A6000": 155e12, "V100": 125e12, "T4": 65e12,
}


@dataclass(frozen=True)
class Time:
    """step_s: seconds of a step, the shortest and the longest that is likely; equal where the
    device was measured. full_ratio: of a LoRA step to one of full fine-tuning, by FLOPs alone and,
    where measured, by all that is counted. evaluation_s: of all evaluations together. total_s:
    without the start. source: what the figures rest on. error: of the calibration, relative."""

    step_s: tuple[float, float]
    flops: float
    flops_ratio: float
    time_ratio: float | None
    evaluation_s: tuple[float, float]
    total_s: tuple[float, float]
    source: str
    error: float | None


@dataclass(frozen=True)
class Course:
    """Of a run: how many steps, and evaluations of how many rows as `Rows`; None without any."""

    steps: int
    evaluations: int
    held_out: Rows | None


def predict_time(shapes: Shapes, trained: Trained, rows: Rows, course: Course, *,
                 recomputation: str, quantised: bool, devices: int,
                 calibration: Calibration | None, device: str) -> Time | None:
    """None where the device was not measured and is on no data sheet."""
    work = work_of(shapes, trained, rows, recomputation=recomputation, quantised=quantised)
    full = work_of(shapes, full_fine_tuning(shapes), rows, recomputation=recomputation)
    # An evaluation is a forward pass: as if everything lay below the lowest trained layer.
    forward = None if course.held_out is None else work_of(
        shapes, replace(trained, method="none", lowest_layer=shapes.sizes.layers),
        course.held_out, quantised=quantised)
    if calibration is not None:
        step = calibration.step_s(work) / devices
        evaluation = 0.0 if forward is None else (
            course.evaluations * (calibration.step_s(replace(forward, updated=0.0)) / devices))
        total = course.steps * step + evaluation
        return Time((step, step), work.flops, work.flops / full.flops,
                    calibration.step_s(work) / calibration.step_s(full),
                    (evaluation, evaluation), (total, total),
                    f"measured on {calibration.device}", calibration.error)
    sheet = next((rate for name, rate in SHEETS.items() if name in device), None)
    if sheet is None:
        return None
    slow, fast = (1 / (sheet * share * devices) for share in EFFICIENCY)
    evaluation_flops = 0.0 if forward is None else course.evaluations * forward.flops
    return Time((work.flops * fast, work.flops * slow), work.flops, work.flops / full.flops, None,
                (evaluation_flops * fast, evaluation_flops * slow),
                ((course.steps * work.flops + evaluation_flops) * fast,
                 (course.steps * work.flops + evaluation_flops) * slow),
                f"{device}'s data sheet, of which training reaches {EFFICIENCY[0]:.0%} to "
                f"{EFFICIENCY[1]:.0%}; --calibrate measures it", None)


def evaluations(steps: int, eval_every: int) -> int:
    """One before the first step, one after every `eval_every`, and always one at the end."""
    return 1 + math.ceil(steps / eval_every)
