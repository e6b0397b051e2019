"""Steps as they will be laid out, and how long a run takes of them."""

from pathlib import Path

import numpy as np
import pytest

from lorafit.data.estimate import Amount
from lorafit.data.packing import Layout, split_rows
from lorafit.plan.calibration import Calibration
from lorafit.plan.shapes import shapes_of
from lorafit.plan.step_time import SHEETS, Course, evaluations, predict_time
from lorafit.plan.steps import draw_steps
from lorafit.plan.trained import trained_of
from lorafit.plan.work import Rows
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.schema import Model
from lorafit.run_dir import RunDir, read_jsonl

TINY = shapes_of(Model(base="tiny"))
LORA = trained_of(TINY, Adapter())
ROWS = Rows(1000, 400, 50_000, 2)
UNITS = {"flops": 1e-9, "numbers": 0.0, "calls": 0.0, "stored_numbers": 0.0, "updated": 0.0}


@pytest.mark.parametrize("batching", ["padded", "padding_free", "packed"])
def test_steps_are_laid_out_as_in_training(batching):
    lengths = np.array([3, 9, 20, 31, 8, 8, 15, 40])
    amount = Amount(8, lengths, lengths // 2, True, "")
    layout = Layout(batching, 3, 48, flat=True)
    found = draw_steps(amount, 8, layout)  # each step takes all rows, in another order
    parts = split_rows(lengths, layout, 1)
    assert found.rows.tokens == sum(part.computed_tokens(lengths) for part in parts)
    assert found.rows.supervised_tokens == sum(lengths // 2)
    assert found.rows.micro_batches == len(parts)
    assert found.largest_tokens == max(part.computed_tokens(lengths) for part in parts)
    least = int((lengths.astype(int) ** 2).sum())
    assert found.rows.squares == least if batching != "padded" else found.rows.squares > least


@pytest.mark.parametrize(("steps", "every"), [(7, 3), (6, 3), (5, 9)])
def test_evaluations_are_as_many_as_a_run_makes(steps, every, make_recipe, train):
    recipe = make_recipe(training={"steps": steps, "eval_every": every})
    train(recipe)
    lines = read_jsonl(RunDir(Path(recipe.output.dir)).metrics)
    assert evaluations(steps, every) == sum("held_out_loss" in line for line in lines)


def test_a_run_is_its_steps_and_its_evaluations():
    def total(course: Course, devices: int = 1) -> tuple[float, float]:
        found = predict_time(TINY, LORA, ROWS, course, recomputation="none", quantised=False,
                             devices=devices, device="this CPU",
                             calibration=Calibration("this CPU", UNITS, 0.1, 9))
        assert found is not None
        assert found.step_s == (found.flops * 1e-9 / devices,) * 2
        return found.total_s[0], found.step_s[0]

    alone, step = total(Course(10, 0, None))
    assert alone == pytest.approx(10 * step)
    with_rows, _ = total(Course(10, 3, ROWS))
    # Forward passes: a third or a little more of a step, as adapters and attention have it.
    assert 0.3 * 3 * step < with_rows - alone < 0.6 * 3 * step
    assert total(Course(10, 0, None), devices=2)[0] == pytest.approx(alone / 2)


def test_without_a_measurement_the_data_sheet_gives_a_range_and_nothing_gives_nothing():
    arguments = {"recomputation": "none", "quantised": False, "devices": 1, "calibration": None}
    found = predict_time(TINY, LORA, ROWS, Course(10, 0, None), device="NVIDIA A100-SXM4-80GB",
                         **arguments)
    assert found is not None
    low, high = found.step_s
    assert found.flops / SHEETS["A100"] < low < high
    assert "data sheet" in found.source
    assert predict_time(TINY, LORA, ROWS, Course(10, 0, None), device="this CPU",
                        **arguments) is None
