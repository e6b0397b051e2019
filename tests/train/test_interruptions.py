"""A run that is asked to stop, at whatever moment, ends in the state of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorafit.cli.durations import duration_s
from lorafit.errors import Stopped, UserError
from lorafit.run_dir import RunDir, append_jsonl, write_text
from lorafit.train.run import train as run_training
from lorafit.train.signals import StopRequest, Wish

# Of a step, what no two runs have alike.
MEASURED = ("seconds", "seconds_data", "seconds_communication", "memory_bytes")


class AskedAt(StopRequest):
    """Is asked for something from the n-th time on that the run looks."""

    def __init__(self, look: int, what: Wish) -> None:
        super().__init__()
        self.looks, self._look, self._what = 0, look, what

    @property
    def wish(self) -> Wish:
        self.looks += 1
        return self._what if self.looks >= self._look else Wish.NOTHING


def run(recipe: Any, stop: StopRequest | None = None, **options: Any) -> Any:
    return run_training(recipe, announce=lambda record: None, started_s=time.perf_counter(),
                        stop=stop, **{"resume": False, **options})


def told(recipe: Any) -> list[dict[str, Any]]:
    """The log without times."""
    lines = (Path(recipe.output.dir) / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in MEASURED}
            for line in lines]


def adapter(recipe: Any) -> bytes:
    return (Path(recipe.output.dir) / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return {"adapter": {"dropout": 0.1}, "training": {
        "steps": 4, "eval_every": 2, "checkpoint_every": 4, "early_stopping": 3,
        "sample_prompts": ["How much is 1 and 2?"], "sample_tokens": 2}}


def test_whenever_it_is_asked_to_stop_the_resumed_run_is_the_same(make_recipe, settings):
    """The run looks between the micro-batches of each evaluation and at the end of each step."""
    whole = make_recipe("whole", **settings)
    never = AskedAt(10**9, Wish.TERMINATE)
    run(whole, never)
    assert never.looks > 10
    for look in (1, 3, 4, 6, 7, never.looks):
        part = make_recipe(f"part-{look}", **settings)
        with pytest.raises(Stopped) as stopped:
            run(part, AskedAt(look, Wish.TERMINATE))
        assert stopped.value.exit_code == 143
        assert not (Path(part.output.dir) / "result.json").exists()
        run(part, resume=True)
        assert adapter(part) == adapter(whole), look
        assert told(part) == told(whole), look
        samples = [(Path(r.output.dir) / "samples.jsonl").read_text() for r in (whole, part)]
        assert samples[0] == samples[1], look


def test_asked_to_save_it_saves_and_goes_on(make_recipe):
    recipe = make_recipe(training={"steps": 3, "eval_every": 3, "checkpoint_every": 3,
                                   "keep_checkpoints": 9}, data={"eval": None})
    run(recipe, AskedAt(3, Wish.SAVE))  # it looks twice in each step
    names = [path.name for path in RunDir(Path(recipe.output.dir)).list_checkpoints()]
    assert names == [f"step-{step:08d}" for step in (0, 2, 3)]


def test_when_the_time_is_over_it_stops_after_a_step(make_recipe):
    recipe = make_recipe(data={"eval": None})
    with pytest.raises(Stopped, match=r"the time of --stop-after is over.*step 1 of 4") as stopped:
        run(recipe, StopRequest(deadline_s=time.perf_counter()))
    assert stopped.value.exit_code == 6
    run(recipe, resume=True)
    whole = make_recipe("whole", data={"eval": None})
    run(whole)
    assert adapter(recipe) == adapter(whole)


def test_one_command_starts_goes_on_and_finds_it_done(make_recipe):
    recipe = make_recipe(data={"eval": None})
    with pytest.raises(Stopped):
        run(recipe, AskedAt(2, Wish.INTERRUPT), resume=True, or_start=True)
    run(recipe, resume=True, or_start=True)
    before = adapter(recipe)
    assert run(recipe, resume=True, or_start=True).progress.step == 4
    assert adapter(recipe) == before


def test_a_start_that_was_killed_is_made_again(make_recipe):
    recipe = make_recipe(data={"eval": None}, training={"steps": 1})
    directory = RunDir(Path(recipe.output.dir))
    directory.create()
    write_text(directory.held_out, "")  # and no further: the recipe comes last
    run(recipe, resume=True, or_start=True)
    assert directory.result.exists()


def test_resume_refuses_a_base_that_changed(make_recipe, shrunken):
    base = shrunken("llama")
    recipe = make_recipe(model={"base": str(base)}, data={"eval": None}, training={"steps": 2})
    with pytest.raises(Stopped):
        run(recipe, AskedAt(1, Wish.TERMINATE))
    file = base / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40_000] = bytes(40_000)
    file.write_bytes(content)
    with pytest.raises(UserError, match="the files of the base changed"):
        run(recipe, resume=True)


def test_resume_refuses_a_start_that_is_damaged(make_recipe):
    recipe = make_recipe(data={"eval": None}, adapter={"init": "pissa"}, training={"steps": 2})
    with pytest.raises(Stopped):
        run(recipe, AskedAt(1, Wish.TERMINATE))
    file = RunDir(Path(recipe.output.dir)).initial_adapter / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="the start of the adapter is damaged"):
        run(recipe, resume=True)


def test_a_run_that_goes_on_under_other_versions_says_so(make_recipe):
    recipe = make_recipe(data={"eval": None}, training={"steps": 2})
    with pytest.raises(Stopped):
        run(recipe, AskedAt(1, Wish.TERMINATE))
    directory = RunDir(Path(recipe.output.dir))
    record = json.loads(directory.record.read_text())
    record["versions"]["torch"] = "1.0"
    directory.record.write_text(json.dumps(record))
    records = []
    run_training(recipe, resume=True, announce=records.append, started_s=time.perf_counter())
    assert any("begun with torch 1.0" in remark for remark in records[0].remarks)


def test_a_log_that_a_kill_cut_in_the_middle_of_a_line_is_mended(make_recipe):
    recipe = make_recipe(data={"eval": None})
    with pytest.raises(Stopped):
        run(recipe, AskedAt(2, Wish.TERMINATE))
    directory = RunDir(Path(recipe.output.dir))
    append_jsonl(directory.metrics, {"step": 3, "loss": 1.0})
    with directory.metrics.open("a") as file:
        file.write('[1]\n{"step": 1, \0}\n{"step": 4, "lo')
    run(recipe, resume=True)
    whole = make_recipe("whole", data={"eval": None})
    run(whole)
    assert told(recipe) == told(whole)


def test_sigterm_while_libraries_are_loaded_has_its_exit_code(make_recipe, tmp_path):
    recipe = make_recipe()
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump()))
    process = subprocess.Popen([sys.executable, "-m", "lorafit", "train", str(path)],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=os.environ.copy())
    time.sleep(1.5)  # Python and the recipe take half a second, libraries and weights five
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "stopped" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(("text", "seconds"), [
    ("90s", 90), ("45m", 2700), ("3h", 10800), ("2h30m", 9000), ("1.5h", 5400), ("1d", 86400)])
def test_lengths_of_time(text, seconds):
    assert duration_s(text, "--stop-after") == seconds


@pytest.mark.parametrize("text", ["", "3", "h", "-1h", "3 hours", "1h 2m", "0s", "nan"])
def test_what_is_no_length_of_time_is_refused(text):
    with pytest.raises(UserError, match="no length of time"):
        duration_s(text, "--stop-after")


def test_the_environment_of_accelerate_changes_no_gradient(make_recipe, monkeypatch):
    plain = make_recipe("plain", data={"eval": None}, training={"steps": 2})
    run(plain)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    other = make_recipe("other", data={"eval": None}, training={"steps": 2})
    run(other)
    assert told(other) == told(plain)
    monkeypatch.setenv("ACCELERATE_USE_MEGATRON_LM", "true")
    with pytest.raises(UserError, match="MEGATRON_LM is not supported"):
        run(make_recipe("third", data={"eval": None}))
