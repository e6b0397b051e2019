"""What a plan measures when it is asked to: the base's loss, and how fast this device computes."""

from pathlib import Path

import pytest

from lorafit.bench import calibrate as calibrating
from lorafit.bench.request import Request
from lorafit.bench.shapes import Shape
from lorafit.evaluate.base_loss import base_loss
from lorafit.plan.calibration import Key, kept
from lorafit.plan.machine import this_machine
from lorafit.run_dir import RunDir, read_json, read_jsonl

SMALL = Shape(64, 2, 4, 2, 128, 512, True)


def test_the_bases_loss_is_what_training_begins_with(make_recipe, train):
    recipe = make_recipe(data={"train": make_recipe().data.eval, "checks": {"overlap": "allow"}})
    measured = base_loss(recipe, rows=1000)
    train(recipe)
    first = next(line for line in read_jsonl(RunDir(Path(recipe.output.dir)).metrics)
                 if "held_out_loss" in line)
    assert measured == pytest.approx(first["held_out_loss"], rel=1e-5)


def test_what_was_measured_of_this_device_times_its_runs(make_recipe, train, monkeypatch,
                                                         tmp_path):
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path))
    unknown = make_recipe("before")
    train(unknown)
    told = read_json(RunDir(Path(unknown.output.dir)).record)["predicted"]
    assert (told["step_s"], told["total_s"]) == (None, None)
    monkeypatch.setattr(calibrating, "_cases", lambda quantization, dtype: [calibrating._Case(
        SMALL, Request(batch_size=size, length=32, dtype=dtype)) for size in (2, 8)])
    key = Key.of(this_machine(), "float32", "none")
    found = calibrating.calibrate(key)
    assert kept(key) == found
    assert found.steps == 4  # each adapted, and in full
    known = make_recipe("after")
    train(known)
    record = read_json(RunDir(Path(known.output.dir)).record)
    told = record["predicted"]
    assert 0 < told["step_s"] * record["plan"]["total_steps"] < told["total_s"]  # and evaluations
    assert key.device in told["based_on"]
