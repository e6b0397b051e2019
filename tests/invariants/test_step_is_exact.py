"""Pairs of runs that must agree: micro-batches, ranks, interruptions, scales, repetitions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.conftest import adapter_tensors, largest_difference

# Adam divides a gradient by its own size, so a weight whose gradient is near zero can move by a
# whole learning rate on the sign of a rounding error. Weights are therefore compared with a bound
# well below one step (1e-3), and losses with one near rounding.
WEIGHTS = 2e-5
LOSS = 2e-6


def steps(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in steps(run)]


def held_out_losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["held_out_loss"] for line in lines if "held_out_loss" in line]


def lorafit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lorafit", *arguments], capture_output=True, text=True,
        timeout=240, env={**os.environ, **environment},
    )


def written(recipe, path: Path) -> str:
    path.write_text(yaml.safe_dump(recipe.model_dump()))
    return str(path)


def test_one_large_micro_batch_equals_many_small_ones(make_recipe, train):
    """Ragged rows: a mean of micro-batch means would give other weights."""
    runs = []
    for size in (8, 1):
        recipe = make_recipe(f"micro-{size}", training={"batch_size": 8, "micro_batch_size": size})
        train(recipe)
        runs.append(Path(recipe.output.dir))
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), abs=LOSS)
    assert largest_difference(adapter_tensors(runs[0]), adapter_tensors(runs[1])) < WEIGHTS


@pytest.mark.parametrize("batching", ["padding_free", "packed"])
def test_the_layout_of_a_step_changes_no_loss_and_no_weight(make_recipe, train, batching):
    """Held-out losses too: they are computed in the same layout."""
    runs = []
    for layout in ("padded", batching):
        recipe = make_recipe(layout, data={"max_length_tokens": 100}, training={
            "batching": layout, "batch_size": 6, "micro_batch_size": 2})
        train(recipe)
        runs.append(Path(recipe.output.dir))
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), abs=LOSS)
    assert held_out_losses(runs[0]) == pytest.approx(held_out_losses(runs[1]), abs=LOSS)
    assert largest_difference(adapter_tensors(runs[0]), adapter_tensors(runs[1])) < WEIGHTS
    padded, packed = ([(line["tokens"], line["computed_tokens"]) for line in steps(run)]
                      for run in runs)
    assert [tokens for tokens, _ in padded] == [tokens for tokens, _ in packed]
    assert all(computed > tokens for tokens, computed in padded)
    if batching == "padding_free":
        assert all(computed == tokens for tokens, computed in packed)


def test_weights_of_messages_are_a_weighted_mean_over_the_whole_step(
        make_recipe, train, chat_file, tmp_path):
    """The same weight everywhere changes nothing; different ones do, alike in every layout."""
    rows = [json.loads(line) for line in chat_file().read_text().splitlines()]

    def curve(name: str, weight_of_row, **training) -> list[float]:
        for n, row in enumerate(rows):
            row["messages"][-1]["weight"] = weight_of_row(n)
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = make_recipe(name, data={"train": str(path), "max_length_tokens": 100},
                             training={"batch_size": 6, "micro_batch_size": 2, **training})
        train(recipe)
        return losses(Path(recipe.output.dir))

    plain = curve("plain", lambda n: None)
    assert curve("all-halved", lambda n: 0.5) == pytest.approx(plain, abs=LOSS)
    weighted = curve("weighted", lambda n: 0.25 * (1 + n % 3))
    assert weighted != pytest.approx(plain, abs=1e-3)
    for layout in ({"batching": "packed"}, {"micro_batch_size": 1}):
        name = "-".join(map(str, layout.values()))
        again = curve(name, lambda n: 0.25 * (1 + n % 3), **layout)
        assert again == pytest.approx(weighted, abs=LOSS)


def test_two_packed_ranks_equal_one(make_recipe, tmp_path):
    """Three rows of one example: the second rank's last micro-batch is an empty one."""
    runs = []
    for ranks in (1, 2):
        recipe = make_recipe(f"packed-{ranks}", data={"max_rows": 3, "max_length_tokens": 40},
                             training={"steps": 2, "batch_size": 3, "micro_batch_size": 1,
                                       "batching": "packed"})
        done = lorafit("train", written(recipe, tmp_path / f"packed-{ranks}.yaml"),
                       "--num-processes", str(ranks), OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        runs.append(Path(recipe.output.dir))
    empty = [two["computed_tokens"] - one["computed_tokens"]
             for one, two in zip(*map(steps, runs), strict=True)]
    assert empty == [2, 2]
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), abs=LOSS)
    assert largest_difference(adapter_tensors(runs[0]), adapter_tensors(runs[1])) < WEIGHTS


def test_two_ranks_equal_one_with_dropout_and_a_last_batch_that_does_not_divide(
        make_recipe, tmp_path):
    """Eleven rows in batches of 4, micro-batches of 1: the last step has 3 for 2 ranks."""
    runs = []
    for ranks in (1, 2):
        recipe = make_recipe(
            f"ranks-{ranks}", adapter={"dropout": 0.1}, data={"max_rows": 11},
            training={"steps": None, "epochs": 1, "micro_batch_size": 1},
        )
        done = lorafit("train", written(recipe, tmp_path / f"{ranks}.yaml"),
                       "--num-processes", str(ranks), OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        runs.append(Path(recipe.output.dir))
    assert json.loads((runs[1] / "record.json").read_text())["processes"] == 2
    assert len(losses(runs[0])) == 3
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), abs=LOSS)
    assert largest_difference(adapter_tensors(runs[0]), adapter_tensors(runs[1])) < WEIGHTS


@pytest.mark.long
def test_accelerate_launch_trains_what_lorafit_launches(make_recipe, tmp_path):
    own, accelerated = make_recipe("own"), make_recipe("accelerated")
    done = lorafit("train", written(own, tmp_path / "own.yaml"), "--num-processes", "2",
                   OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
         "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
         "-m", "lorafit", "train", written(accelerated, tmp_path / "accelerated.yaml")],
        capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    files = [Path(r.output.dir) / "adapter" / "adapter_model.safetensors"
             for r in (own, accelerated)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_same_recipe_twice_gives_the_same_bytes(make_recipe, train):
    contents = []
    for name in ("first", "second"):
        recipe = make_recipe(name, adapter={"dropout": 0.1})
        train(recipe)
        folder = Path(recipe.output.dir) / "adapter"
        contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert contents[0] == contents[1]


@pytest.mark.parametrize("adapter", [
    {"dropout": 0.1}, {"init": "pissa"}, {"dora": True}, {"modules_to_save": ["lm_head"]},
], ids=["dropout", "pissa", "dora", "modules_to_save"])
def test_a_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one(make_recipe, train, adapter):
    """Stopped after 3 of 6 steps, mid-epoch, with an evaluation in between."""
    whole = make_recipe("whole", adapter=adapter, training={"steps": 6, "checkpoint_every": 3})
    train(whole)
    part = make_recipe("part", adapter=adapter, training={"steps": 3, "checkpoint_every": 3})
    train(part)
    rest = make_recipe("part", adapter=adapter, training={"steps": 6, "checkpoint_every": 3})
    train(rest, resume=True)
    files = [Path(r.output.dir) / "adapter" / "adapter_model.safetensors" for r in (whole, rest)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert losses(Path(whole.output.dir)) == losses(Path(rest.output.dir))


def test_a_fresh_adapter_changes_nothing_at_any_rank_and_alpha(make_recipe, train):
    """B starts at zero, so the first loss is the base's own, whatever the rank and alpha."""
    first = []
    for rank, alpha in ((2, 2), (4, 64)):
        recipe = make_recipe(f"rank-{rank}", adapter={"rank": rank, "alpha": alpha})
        train(recipe)
        first.append(losses(Path(recipe.output.dir))[0])
    assert first[0] == first[1]


def test_scaling_a_and_alpha_against_each_other_leaves_training_unchanged():
    """α → α/(pq), A₀ → p·A₀, learning rate of A → p, of B → q (LoRA Without Regret): with
    Adam and ε → 0 every step computes the same model."""
    import torch
    from transformers import AutoModelForCausalLM

    from lorafit.model.adapters.add import add_adapter
    from lorafit.model.base import TINY
    from lorafit.model.loss import summed_cross_entropy
    from lorafit.recipe.adapter import Adapter

    ids = torch.arange(60).reshape(3, 20) + 5
    mask = torch.ones_like(ids)
    curves = []
    for p, q in ((1.0, 1.0), (2.0, 4.0)):
        base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float64)
        model = add_adapter(base, Adapter(rank=4, alpha=16 / (p * q)), 0, "tiny").double()
        a = [w for name, w in model.named_parameters() if "lora_A" in name]
        b = [w for name, w in model.named_parameters() if "lora_B" in name]
        with torch.no_grad():
            for weight in a:
                weight.mul_(p)
        optimizer = torch.optim.Adam(
            [{"params": a, "lr": 1e-3 * p}, {"params": b, "lr": 1e-3 * q}], eps=1e-30)
        curve = []
        for _ in range(8):
            loss = summed_cross_entropy(model, ids, mask, ids)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(float(loss.detach()))
        curves.append(curve)
    assert curves[0][-1] < curves[0][0] - 1
    assert curves[0] == pytest.approx(curves[1], rel=1e-6)


def test_checkpointed_activations_change_nothing(make_recipe, train):
    results = []
    for on in (False, True):
        recipe = make_recipe(f"recompute-{on}", training={"activation_checkpointing": on})
        train(recipe)
        results.append(adapter_tensors(recipe.output.dir))
    assert largest_difference(*results) < WEIGHTS


def test_the_kept_adapter_is_the_best_checkpoint(make_recipe, train):
    """A rate that overshoots makes the loss jump; the run is ended where it just got worse."""

    def overshoot(name: str, rate: float, steps: int):
        recipe = make_recipe(name, training={
            "steps": steps, "learning_rate": rate, "max_grad_norm": None, "eval_every": 1,
            "checkpoint_every": 1})
        result = train(recipe)
        run = Path(recipe.output.dir)
        return result, run, {
            line["step"]: line["held_out_loss"]
            for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            if "held_out_loss" in line and line["step"] > 0}

    for rate in (1.0, 5.0, 20.0, 100.0):  # where it jumps depends on a machine's rounding
        _, _, evals = overshoot(f"long-{rate}", rate, 10)
        worse = next((n for n in evals if n > 1 and evals[n] > evals[n - 1]), 0)
        if worse:
            break
    result, run, evals = overshoot("short", rate, worse)
    best = min(evals, key=evals.get)
    assert best < worse
    assert result.kept_step == best
    kept = load_file(run / "checkpoints" / f"step-{best:08d}" / "adapter_model.safetensors")
    assert largest_difference(kept, adapter_tensors(run)) == 0
