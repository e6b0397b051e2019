"""Base beside adapter on held-out rows."""

import json
from pathlib import Path

import pytest

from lorafit.errors import UserError
from lorafit.evaluate.exact_match import evaluate
from lorafit.model.trained import open_adapter


def test_a_memorised_answer_counts_and_the_base_does_not_know_it(make_recipe, train, tmp_path):
    """Trained on the very rows it is asked: every answer is right, none of the base's is."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Code of {name}?", "completion": code}) + "\n"
                            for name, code in (("red", "zq 41"), ("blue", "vx 77"))))
    recipe = make_recipe(
        adapter={"rank": 16, "alpha": 32}, data={"train": str(rows), "eval": str(rows),
              "checks": {"overlap": "allow"}},
        training={"steps": 60, "batch_size": 2, "learning_rate": 5e-3, "eval_every": 30,
                  "checkpoint_every": 30})
    train(recipe)
    source = open_adapter(Path(recipe.output.dir))
    result = evaluate(source, None, 16)
    assert (result.base.correct, result.adapter.correct, result.adapter.rows) == (0, 2, 2)
    assert result.adapter.loss < 0.1 < result.base.loss
    assert {answer.adapter for answer in result.answers} == {"zq 41", "vx 77"}
    stored = json.loads((Path(recipe.output.dir) / "evaluation.json").read_text())
    assert stored["adapter"]["correct"] == 2


def test_a_run_without_held_out_rows_is_refused(make_recipe, train):
    recipe = make_recipe(data={"eval": None}, training={"steps": 1})
    train(recipe)
    with pytest.raises(UserError, match="no held-out rows"):
        evaluate(open_adapter(Path(recipe.output.dir)), None, 16)


def test_a_row_that_was_split_is_asked_once(make_recipe, train):
    recipe = make_recipe(data={"max_length_tokens": 12, "on_long": "split"}, training={"steps": 1})
    train(recipe)
    result = evaluate(open_adapter(Path(recipe.output.dir)), None, 2)
    assert result.base.rows == 5
    assert len({answer.prompt for answer in result.answers}) == 5
