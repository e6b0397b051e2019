"""A run from recipe to result, and what is left on disk when it does not get there."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lorafit.errors import DivergedError, UserError
from lorafit.recipe.loading import load_recipe
from lorafit.recipe.schema import Training
from lorafit.run_dir import RunDir, damage, read_jsonl
from lorafit.train.checkpoint import newest_good_checkpoint
from lorafit.train.schedule import learning_rate_at, warmup_steps


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_and_leaves_everything_documented(make_recipe, train):
    recipe = make_recipe(training={"steps": 12, "learning_rate": 5e-3, "eval_every": 4,
                                   "sample_prompts": ["How much is 1 and 2?"]})
    result = train(recipe)
    run = RunDir(Path(recipe.output.dir))
    assert result.progress.best_loss < 0.5 * result.progress.first_eval_loss
    assert load_recipe(run.recipe).adapter == recipe.adapter
    record = json.loads(run.record.read_text())
    assert {d["key"] for d in record["decisions"]} >= {"model.dtype", "training.learning_rate"}
    assert all(d["reason"] for d in record["decisions"])
    assert record["train"]["rows_used"] == 12
    steps = [line for line in metrics(run.path) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert sum(line["supervised_tokens"] for line in steps[:3]) == record["train"][
        "supervised_tokens"]
    assert json.loads(run.result.read_text())["status"] == "done"
    assert len(run.samples.read_text().splitlines()) == 4
    assert len(run.list_checkpoints()) <= 3
    assert all(damage(path) is None for path in run.list_checkpoints())


@pytest.mark.parametrize("changes", [
    {"model": {"quantization": "nf4", "dtype": "bfloat16"}},
    {"model": {"quantization": "int8"}},
    {"model": {"dtype": "bfloat16"}},
    {"model": {"dtype": "float16"}},
    {"training": {"optimizer": "adamw_8bit", "steps": 8, "learning_rate": 5e-3}},
    {"adapter": {"rank": 4, "alpha": 8, "init": "olora"}},
    {"adapter": {"rank": 4, "alpha": 8, "dora": True, "rslora": True}},
], ids=lambda changes: json.dumps(next(iter(changes.values()))))
def test_every_kind_of_base_and_optimizer_really_learns(make_recipe, train, changes):
    defaults = {"training": {"steps": 8, "learning_rate": 5e-3}}
    result = train(make_recipe(**{**defaults, **changes}))
    assert result.progress.best_loss < 0.8 * result.progress.first_eval_loss


def test_an_eight_bit_optimizer_resumes_to_the_same_bytes(make_recipe, train):
    files = []
    whole = make_recipe("whole", training={"optimizer": "adamw_8bit"})
    train(whole)
    part = make_recipe("part", training={"optimizer": "adamw_8bit", "steps": 2})
    train(part)
    rest = make_recipe("part", training={"optimizer": "adamw_8bit"})
    train(rest, resume=True)
    for recipe in (whole, rest):
        files.append((Path(recipe.output.dir) / "adapter/adapter_model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_early_stopping_ends_a_run_that_gets_worse(make_recipe, train):
    result = train(make_recipe(training={
        "steps": 40, "learning_rate": 1.0, "warmup": 8, "max_grad_norm": None, "eval_every": 1,
        "early_stopping": 2}))
    assert result.progress.stopped_early
    assert result.progress.step < 40


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(make_recipe, train,
                                                                   monkeypatch):
    """The third step's loss is made infinite where the model computes it. Before the two of each
    step there is one call that measures memory."""
    from lorafit.model import loss as losses

    calls = []
    real = losses.cross_entropy_of_states

    def poisoned(*batch):
        value = real(*batch)
        if torch.is_grad_enabled():
            calls.append(1)
        return value * float("inf") if len(calls) == 7 and torch.is_grad_enabled() else value

    monkeypatch.setattr(losses, "cross_entropy_of_states", poisoned)
    recipe = make_recipe(training={"checkpoint_every": 1})
    with pytest.raises(DivergedError, match=r"step 3 .*\n.*rows of this step: .*train\.jsonl:\d+"):
        train(recipe)
    run = RunDir(Path(recipe.output.dir))
    assert [path.name for path in run.list_checkpoints()][-1] == "step-00000002"
    assert not run.result.exists()
    for path in run.list_checkpoints():
        for tensor in load_file(path / "adapter_model.safetensors").values():
            assert torch.isfinite(tensor).all()


def test_resume_skips_a_damaged_checkpoint_and_says_so(make_recipe, train):
    recipe = make_recipe(training={"checkpoint_every": 1, "steps": 3})
    train(recipe)
    run = RunDir(Path(recipe.output.dir))
    newest = run.list_checkpoints()[-1] / "optimizer.safetensors"
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    good, skipped = newest_good_checkpoint(run)
    assert good.name == "step-00000002"
    assert "step-00000003: optimizer.safetensors is damaged" in skipped[0]


def test_a_resumed_run_sets_damaged_checkpoints_aside_and_keeps_good_ones(make_recipe, train):
    """With one checkpoint to keep, the damaged newer one must not push the good ones out."""
    one = {"checkpoint_every": 1, "eval_every": 9, "keep_checkpoints": 2}
    train(make_recipe(data={"eval": None}, training={**one, "steps": 3}))
    run = RunDir(Path(make_recipe().output.dir))
    (run.list_checkpoints()[-1] / "state.json").write_text("{")
    train(make_recipe(data={"eval": None}, training={**one, "steps": 4, "keep_checkpoints": 1}),
          resume=True)
    assert [path.name for path in run.list_checkpoints()] == ["step-00000004"]
    assert len(list(run.checkpoints.glob("damaged-step-00000003-*"))) == 1


def test_a_run_that_stopped_early_goes_on_with_more_patience(make_recipe, train):
    impatient = {"steps": 12, "learning_rate": 1.0, "warmup": 8, "max_grad_norm": None,
                 "eval_every": 1, "checkpoint_every": 1, "early_stopping": 1}
    stopped = train(make_recipe(training=impatient))
    assert stopped.progress.stopped_early
    unchanged = train(make_recipe(training=impatient), resume=True)
    assert unchanged.progress.step == stopped.progress.step
    patient = train(make_recipe(training={**impatient, "early_stopping": 50}), resume=True)
    assert patient.progress.step == 12


def test_a_resumed_run_keeps_the_date_of_its_first_day(make_recipe, train):
    train(make_recipe(data={"date": "2020-01-31"}, training={"steps": 2}))
    train(make_recipe(), resume=True)
    saved = load_recipe(RunDir(Path(make_recipe().output.dir)).recipe)
    assert saved.data.date == "2020-01-31"


@pytest.mark.parametrize(("change", "named"), [
    ({"adapter": {"rank": 8}}, "adapter.rank"),
    ({"training": {"seed": 1}}, "training.seed"),
    ({"training": {"learning_rate": 2e-3}}, "training.learning_rate"),
])
def test_resume_refuses_a_recipe_that_changed(make_recipe, train, change, named):
    train(make_recipe(training={"steps": 2}))
    with pytest.raises(UserError, match=named):
        train(make_recipe(**change), resume=True)


def test_resume_refuses_data_that_changed(make_recipe, train):
    recipe = make_recipe(training={"steps": 2})
    train(recipe)
    path = Path(recipe.data.train)
    path.write_text(path.read_text().replace("It is 1.", "It is 2."))
    with pytest.raises(UserError, match="data"):
        train(make_recipe(), resume=True)


def test_a_directory_with_a_run_is_never_overwritten(make_recipe, train):
    recipe = make_recipe(training={"steps": 2})
    train(recipe)
    before = (Path(recipe.output.dir) / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="already holds a run"):
        train(recipe)
    assert (Path(recipe.output.dir) / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_commits_the_step_and_the_run_goes_on_from_it(make_recipe, tmp_path, number,
                                                               code):
    recipe = make_recipe(training={"steps": 200, "eval_every": 200, "checkpoint_every": 200})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump()))
    process = subprocess.Popen([sys.executable, "-m", "lorafit", "train", str(path)],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=os.environ.copy())
    log = Path(recipe.output.dir) / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count('"loss"') >= 3):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "a checkpoint was committed" in errors
    assert "Traceback" not in errors
    newest, _ = newest_good_checkpoint(RunDir(Path(recipe.output.dir)))
    done = json.loads((newest / "state.json").read_text())["progress"]["step"]
    assert 3 <= done < 200


def test_the_schedule_is_what_its_formula_says():
    training = Training(schedule="cosine", warmup=10, min_learning_rate=1e-5, learning_rate=1e-3)
    rates = [learning_rate_at(step, 110, training, 1e-3) for step in range(110)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == rates[10] == pytest.approx(1e-3)
    assert rates[60] == pytest.approx((1e-3 + 1e-5) / 2)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    linear = training.model_copy(update={"schedule": "linear"})
    assert learning_rate_at(60, 110, linear, 1e-3) == pytest.approx((1e-3 + 1e-5) / 2)
    assert warmup_steps(training.model_copy(update={"warmup": 0.1}), 110) == 11
    constant = training.model_copy(update={"schedule": "constant", "warmup": 0})
    assert {learning_rate_at(step, 110, constant, 1e-3) for step in range(110)} == {1e-3}


def test_an_adapter_that_calls_the_layers_itself_is_padded_or_masked(make_recipe, train):
    """peft's shadow does not hand on where sequences end: padded by default, masked if asked."""
    adapter = {"method": "shadow", "rank": None, "alpha": None}
    losses = []
    for name, layout in (("auto", {}), ("asked", {"batching": "padding_free"})):
        recipe = make_recipe(name, adapter=adapter, training=layout)
        train(recipe)
        run = RunDir(Path(recipe.output.dir))
        kept = {d["key"]: d["value"] for d in json.loads(run.record.read_text())["decisions"]}
        assert kept["training.batching"] == ("padding_free" if layout else "padded")
        losses.append(read_jsonl(run.metrics)[0]["held_out_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
