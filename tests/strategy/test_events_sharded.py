"""What happens on the way of a run, on two ranks that share its base as on one process: samples,
the best step, an early end, losses that are not finite; signals, a deadline, memory that runs out.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from lorafit.errors import DivergedError
from lorafit.model.base import load_tokenizer
from lorafit.recipe.schema import Model, Recipe
from lorafit.run_dir import RunDir, read_json
from tests.conftest import adapter_tensors, largest_difference, run_training
from tests.strategy.spread import train_sharded

RARE = "~"
NEVER_BETTER = {"learning_rate": 1e-9, "early_stopping": 2, "eval_every": 1, "steps": 8}


def log(recipe: Recipe) -> list[dict[str, Any]]:
    lines = RunDir(Path(recipe.output.dir)).metrics.read_text().splitlines()
    timeless = [json.loads(line) for line in lines]
    for line in timeless:
        line.pop("seconds", None)
    return timeless


def losses(recipe: Recipe) -> list[float]:
    return [line[key] for line in log(recipe) for key in ("loss", "held_out_loss") if key in line]


@pytest.fixture
def make(shrunken, make_recipe):
    """Recipes of a base with two narrow layers."""
    base = str(shrunken("llama"))

    def on_it(name: str = "run", **sections: dict[str, Any]) -> Recipe:
        model = {"base": base, **sections.pop("model", {})}
        return make_recipe(name, model=model, **sections)

    return on_it


@pytest.fixture
def poisoned(shrunken, tmp_path):
    """A base whose embedding of one token is not a number, and a row with the token."""
    base = shrunken("qwen2", tie_word_embeddings=False)
    [token] = load_tokenizer(Model(base="tiny"))(RARE, add_special_tokens=False)["input_ids"]
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    return {"model": {"base": str(base)}, "data": {"eval": None, "train": str(rows_with_it(
        tmp_path / "poisoned.jsonl"))}}


def rows_with_it(path: Path) -> Path:
    rows = [f"How much is {n} and {n + 1}?" for n in range(12)]
    rows[6] = f"How much is {RARE}?"
    path.write_text("".join(json.dumps({"messages": [
        {"role": "user", "content": row}, {"role": "assistant", "content": "It is 7."}]}) + "\n"
        for row in rows))
    return path


def test_two_ranks_tell_what_one_process_tells(make, poisoned, tmp_path):
    sections = {
        "sampled": {"training": {"sample_prompts": ["How much is 2 and 3?", "Hello."],
                                 "sample_tokens": 6}},
        "early": {"training": NEVER_BETTER},
        "left-out": {**poisoned, "training": {"steps": 3, "skip_nonfinite": 1}},
        "diverged": {**poisoned, "training": {"steps": 3, "checkpoint_every": 1}},
    }
    alone = {name: make(f"alone-{name}", **these) for name, these in sections.items()}
    both = {name: make(f"both-{name}", **these) for name, these in sections.items()}
    told = dict(zip(both, train_sharded([(each, False) for each in both.values()],
                                        tmp_path / "ranks"), strict=True))
    for name in ("sampled", "early", "left-out"):
        result = run_training(alone[name])
        assert told[name] is None
        assert losses(both[name]) == pytest.approx(losses(alone[name]), abs=1e-5), name
        assert largest_difference(adapter_tensors(both[name].output.dir),
                                  adapter_tensors(alone[name].output.dir)) < 1e-5, name
        kept = [read_json(RunDir(Path(each[name].output.dir)).result)["kept_step"]
                for each in (alone, both)]
        assert kept[0] == kept[1]
        assert [line.get("skipped") for line in log(both[name])] \
            == [line.get("skipped") for line in log(alone[name])]
        if name == "early":
            assert result.progress.stopped_early
            assert result.progress.step < 8
    samples = [RunDir(Path(each["sampled"].output.dir)).samples.read_text()
               for each in (alone, both)]
    assert samples[0] == samples[1]
    assert samples[0].count("\n") >= 4
    with pytest.raises(DivergedError) as raised:
        run_training(alone["diverged"])
    assert told["diverged"] == str(raised.value)
    assert "poisoned.jsonl:7" in str(raised.value)
    assert "embed_tokens" in str(raised.value)


TROUBLE = """
import os, signal, sys, torch
from lorafit.model.loss import SummedLoss
from lorafit.train import run
real, passes, SETTLED = SummedLoss.forward, 0, False
def forward(self, input_ids, *rest, **named):
    global passes
    is_step = SETTLED and torch.is_grad_enabled()
    if os.environ["RANK"] == "1" and is_step:
        passes += 1
        if TROUBLE == "memory" and len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if TROUBLE == "signal" and passes == 2:
            os.kill(os.getpid(), signal.SIGTERM)
    return real(self, input_ids, *rest, **named)
def run_loop(*what):
    global SETTLED
    SETTLED = True
    return real_loop(*what)
SummedLoss.forward, real_loop, run.run_loop = forward, run.run_loop, run_loop
from lorafit.cli.main import main
TROUBLE, *sys.argv[1:] = sys.argv[1:]
main()
"""


def in_trouble(trouble: str, recipe: Recipe, folder: Path, *options: str) -> Any:
    (folder / "driver.py").write_text(TROUBLE)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump()))
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         str(folder / "driver.py"), trouble, "train", str(folder / "recipe.yaml"),
         "--strategy", "fsdp", *options],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})


def same_as_undisturbed(recipe: Recipe, make: Any, settings: dict[str, Any]) -> None:
    whole = make("whole", training=settings)
    run_training(whole)
    assert losses(recipe) == pytest.approx(losses(whole), abs=1e-5)
    assert largest_difference(adapter_tensors(recipe.output.dir),
                              adapter_tensors(whole.output.dir)) < 1e-5


@pytest.mark.long
def test_memory_of_one_rank_ends_both_and_is_learnt(make, tmp_path):
    # Rows of a step: 4 and 2 for the one rank, 4 for the other. Cut by half they are 2, 2, 1 and 1,
    # or 2 and 2, so the other rank has to go along with nothing to compute.
    settings = {"steps": 2, "batch_size": 10, "micro_batch_size": 4, "batching": "padded"}
    recipe = make(training=settings)
    ended = in_trouble("memory", recipe, tmp_path)
    assert ended.returncode != 0
    assert ended.stderr.count("rank 1 is out of memory in step 1") == 1, ended.stderr
    learnt = read_json(RunDir(Path(recipe.output.dir)).memory)
    assert learnt["halvings"] == 1
    gone_on = in_trouble("memory", recipe, tmp_path, "--resume")
    assert gone_on.returncode == 0, gone_on.stderr  # it would run out again otherwise
    same_as_undisturbed(recipe, make, settings)


def test_a_signal_to_one_rank_stops_both_after_the_same_step(make, tmp_path):
    settings = {"steps": 5, "eval_every": 5, "checkpoint_every": 5}
    recipe = make(training=settings)
    ended = in_trouble("signal", recipe, tmp_path)
    assert ended.returncode != 0
    assert ended.stderr.count("error:") == 1, ended.stderr
    assert "stopped after step 2 of 5; a checkpoint was committed" in ended.stderr
    run_training(recipe, resume=True)
    same_as_undisturbed(recipe, make, settings)


@pytest.mark.long
def test_a_deadline_stops_both(make, tmp_path):
    recipe = make(training={"steps": 10_000})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump()))
    done = subprocess.run(
        [sys.executable, "-m", "lorafit", "train", str(tmp_path / "recipe.yaml"),
         "--num-processes", "2", "--strategy", "fsdp", "--stop-after", "2s"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 6, done.stderr
    assert done.stderr.count("error:") == 1, done.stderr
    assert RunDir(Path(recipe.output.dir)).list_checkpoints()
