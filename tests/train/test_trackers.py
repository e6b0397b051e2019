"""Trackers receive what metrics.jsonl holds, also of a run that goes on, and never end a run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorafit.recipe.schema import Output
from lorafit.train.trackers import Trackers, refuse_missing, scalars_of


def logged(run: Path) -> dict[str, dict[int, float]]:
    """metrics.jsonl, by name of a tracker and step."""
    found: dict[str, dict[int, float]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        for name, value in scalars_of(values).items():
            found.setdefault(name, {})[values["step"]] = value
    return found


def test_names_are_those_of_the_field() -> None:
    assert scalars_of({"step": 2, "held_out_loss": 1.5}) == {"eval/loss": 1.5}
    assert scalars_of({"step": 2, "warning": "jumped"}) == {}
    assert scalars_of({"step": 2, "loss": 1.5, "seconds": 0.5, "supervised_tokens": 100}) == {
        "train/loss": 1.5, "train/seconds": 0.5, "train/supervised_tokens": 100,
        "train/tokens_per_second": 200.0}


def test_tensorboard_holds_each_step_once_after_the_run_went_on(
        make_recipe: Any, train: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = make_recipe(output={"trackers": ["tensorboard"]})
    train(recipe)
    run = Path(recipe.output.dir)
    # As a run that was killed after its second step's checkpoint stands there.
    (run / "result.json").unlink()
    for step in (3, 4):
        if (checkpoint := run / "checkpoints" / f"step-{step:08d}").exists():
            shutil.rmtree(checkpoint)
    train(recipe, resume=True)
    events = EventAccumulator(str(run / "trackers" / "tensorboard"))
    events.Reload()
    wanted = logged(run)
    assert set(wanted["train/loss"]) == {1, 2, 3, 4}
    assert set(wanted) == set(events.Tags()["scalars"])
    for name in ("train/loss", "train/learning_rate", "train/grad_norm", "eval/loss"):
        told = {event.step: event.value for event in events.Scalars(name)}
        assert told == pytest.approx(wanted[name], rel=1e-6), name
        assert len(told) == len(events.Scalars(name)), name
    [text] = {event.tensor_proto.string_val[0].decode() for event in
              events.Tensors("recipe/text_summary")}
    assert "rank: 4" in text


def test_a_tracker_that_fails_is_left_out_and_said_so() -> None:
    class Failing:
        calls = 0

        def log(self, values: dict[str, float], step: int) -> None:
            self.calls += 1
            raise ConnectionError("no route to the server\nand more")

    class Working:
        def __init__(self) -> None:
            self.told: list[int] = []

        def log(self, values: dict[str, float], step: int) -> None:
            self.told.append(step)

        def finish(self) -> None:
            self.told.append(-1)

    said: list[str] = []
    failing, working = Failing(), Working()
    trackers = Trackers({"far": failing, "near": working}, said.append)
    for step in (1, 2):
        trackers.tell({"step": step, "loss": 1.0})
    trackers.finish()
    assert failing.calls == 1
    assert working.told == [1, 2, -1]
    assert said == ["warning: far is left out from here on: no route to the server; metrics.jsonl "
                    "of the run holds everything"]


def test_a_missing_package_is_refused_before_anything_is_loaded(
        make_recipe: Any, tmp_path: Path) -> None:
    from lorafit.recipe.loading import dump_recipe

    recipe = make_recipe(output={"trackers": ["trackio", "wandb"]})
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    program = ("import sys; sys.modules['wandb'] = None; sys.modules['trackio'] = None; "
               "sys.argv = ['lorafit', 'train', sys.argv[1]]; "
               "from lorafit.cli.main import _run; code = _run(); "
               "assert 'torch' not in sys.modules; sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True,
                          text=True)
    assert done.returncode == 2, done.stderr
    for name in ("trackio", "wandb"):
        assert f"output.trackers: {name}: the package {name} is not installed" in done.stderr
        assert f"pip install {name}" in done.stderr
    assert not Path(recipe.output.dir).exists()


def test_nothing_is_refused_where_nothing_is_named() -> None:
    refuse_missing(Output(dir="run"))
    with pytest.raises(ValueError, match="tensorboard"):
        Output.model_validate({"dir": "run", "trackers": ["tensorbord"]})
