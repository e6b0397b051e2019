"""A streamed run is as exact as one whose rows were prepared first."""

import json
from pathlib import Path

import pytest

from lorafit.errors import UserError
from lorafit.run_dir import RunDir
from tests.conftest import adapter_tensors, largest_difference

STREAM = {"streaming": True, "shuffle_rows": 8, "workers": 1}


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_stream_ends_with_the_bytes_of_an_uninterrupted_one(make_recipe, train, stop):
    """Twelve rows in blocks of at least eight, batches of five: stops lie in and between blocks,
    and past the end of the file."""
    settings = {"batch_size": 5, "checkpoint_every": 1, "eval_every": 2}
    dropout = {"dropout": 0.1}
    whole = make_recipe("whole", adapter=dropout, data=STREAM, training={**settings, "steps": 7})
    train(whole)
    part = make_recipe("part", adapter=dropout, data=STREAM, training={**settings, "steps": stop})
    train(part)
    rest = make_recipe("part", adapter=dropout, data=STREAM, training={**settings, "steps": 7})
    train(rest, resume=True)
    files = [Path(r.output.dir) / "adapter" / "adapter_model.safetensors" for r in (whole, rest)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert losses(Path(whole.output.dir)) == losses(Path(rest.output.dir))


def test_a_bad_row_that_comes_late_loses_nothing(make_recipe, train, chat_file, tmp_path):
    path = tmp_path / "late.jsonl"
    text = chat_file(1300, "rows.jsonl").read_text()
    path.write_text(text + '{"messages": []}\n', encoding="utf-8")
    data = {**STREAM, "train": str(path), "shuffle_rows": 200, "eval": None}
    recipe = make_recipe("late", data=data, training={
        "steps": 20, "batch_size": 100, "micro_batch_size": 100, "checkpoint_every": 100})
    with pytest.raises(UserError, match=r"late\.jsonl:1301: messages is no list"):
        train(recipe)
    checkpoint = RunDir(Path(recipe.output.dir)).list_checkpoints()[-1]
    done = int(checkpoint.name.rpartition("-")[2])
    assert done == len(losses(Path(recipe.output.dir))) > 0

    path.write_text(text + text.splitlines()[0] + "\n", encoding="utf-8")  # mended
    with pytest.raises(UserError, match="the data, the tokenizer or the chat template changed"):
        train(recipe, resume=True)
    dropping = make_recipe("late", data={**data, "checks": {"unusable": "drop"}}, training={
        "steps": 20, "batch_size": 100, "micro_batch_size": 100, "checkpoint_every": 100})
    path.write_text(text + '{"messages": []}\n', encoding="utf-8")
    train(dropping, resume=True)
    assert len(losses(Path(recipe.output.dir))) == 20


def test_one_block_of_all_rows_trains_what_prepared_rows_train(make_recipe, train):
    """The first block is shuffled as the first epoch is."""
    streamed = make_recipe("streamed", data={**STREAM, "shuffle_rows": 12},
                           training={"steps": 3})
    prepared = make_recipe("prepared", training={"steps": 3})
    train(streamed)
    train(prepared)
    a, b = (Path(recipe.output.dir) for recipe in (streamed, prepared))
    assert losses(a) == losses(b)
    assert largest_difference(adapter_tensors(a), adapter_tensors(b)) == 0
