"""Signs that a run goes wrong are told, with the rows to look at, and nothing else is."""

import json
import random
from pathlib import Path

import pytest

from lorafit.data.order import Order
from lorafit.train.watch import Watch


def rows() -> str:
    return "train.jsonl:7 (9.00)"


def test_a_gradient_of_exactly_zero_and_a_step_without_trained_tokens():
    watch = Watch()
    assert "exactly 0" in watch.step(1.0, 0.0, 10, rows)[0]
    assert "no token" in watch.step(0.0, 0.0, 0, rows)[0]
    assert watch.step(1.0, 0.1, 10, rows) == []


def test_a_jump_names_rows_and_is_told_three_times_at_most():
    drawn = random.Random(0)
    watch = Watch([2 + drawn.gauss(0, 0.05) for _ in range(40)])
    told = [watch.step(6.0, 1.0, 10, rows) for _ in range(5)]
    assert "train.jsonl:7" in told[0][0]
    assert "further ones are not told" in told[2][0]
    assert told[3:] == [[], []]


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_falls_with_noise_is_no_sign_of_anything(seed):
    drawn = random.Random(seed)
    watch = Watch()
    for step in range(400):
        loss = 0.5 + 3 * 0.985**step + drawn.gauss(0, 0.1)
        assert watch.step(loss, 1.0, 10, pytest.fail) == []


def test_a_loss_that_does_not_move_is_told_once():
    drawn = random.Random(1)
    watch = Watch()
    told = [text for _ in range(300) for text in watch.step(3 + drawn.gauss(0, 0.1), 1.0, 9, rows)]
    assert len(told) == 1
    assert "not moved in 100 steps" in told[0]


def test_a_strange_row_is_named_in_a_real_run(make_recipe, train, tmp_path):
    path = tmp_path / "train.jsonl"
    lines = path.read_text().splitlines()
    strange = {"messages": [{"role": "user", "content": "How much is 1 and 2?"},
                            {"role": "assistant", "content": "qZ#x9&Lw@K7!vJ%3^" * 12}]}
    path.write_text("\n".join([*lines * 8, json.dumps(strange)]) + "\n")
    late = next(seed for seed in range(100)  # an order in which the row comes near the end
                if 96 in Order((97,), (1.0,), seed).rows_of_step(44, 2, 97))
    recipe = make_recipe(data={"eval": None, "checks": {"duplicates": "allow"}}, training={
        "steps": 48, "batch_size": 2, "micro_batch_size": 2, "learning_rate": 5e-3, "seed": late,
        "checkpoint_every": 99})
    train(recipe)
    log = (Path(recipe.output.dir) / "metrics.jsonl").read_text().splitlines()
    warnings = [json.loads(line)["warning"] for line in log if '"warning"' in line]
    assert any("train.jsonl:97 (" in warning for warning in warnings), warnings
