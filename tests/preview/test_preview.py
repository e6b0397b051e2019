"""What a preview gathers: training's own rows, lengths and batches, and what would stop it."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorafit.data.batches import collate
from lorafit.data.dataset import read_data
from lorafit.data.feed import EpochFeed
from lorafit.data.packing import Layout, split_rows
from lorafit.errors import UserError
from lorafit.preview.lengths import histogram
from lorafit.preview.terminal import bar
from lorafit.recipe.schema import Recipe

GOOD = ["How much is 1 and 2?", "3"]


def test_it_shows_what_training_reads(make_recipe: Callable[..., Recipe], tokenizer: Any,
                                      preview: Callable[..., Any]) -> None:
    recipe = make_recipe()
    train, held_out = read_data(recipe.data, tokenizer, recipe.training.seed)
    seen = preview(recipe, rows=100)
    assert held_out is not None
    assert [report for _, report in seen.reports] == [train.report, held_out.report]
    assert not seen.problems
    assert len(seen.shown) == len(train)
    for i, row in enumerate(seen.shown):
        tokens = train.tokens(i)
        assert row.place == str(train.place(i))
        assert [n for piece in row.pieces for n in piece.ids] == tokens.ids.tolist()
        assert [piece.supervised for piece in row.pieces for _ in piece.ids] \
            == tokens.supervised.tolist()
    assert [(part.rows, part.longest, part.tokens) for part in seen.lengths] == [
        (len(data), int(data.lengths.max()), int(data.lengths.sum()))
        for data in (train, held_out)]


def test_rows_are_spread_over_the_data(make_recipe: Callable[..., Recipe],
                                       preview: Callable[..., Any]) -> None:
    seen = preview(make_recipe(), rows=3)
    assert [row.place.rpartition(":")[2] for row in seen.shown] == ["1", "7", "12"]


@pytest.mark.parametrize(("check", "row"), [
    ("special_tokens", ["say <|end|>", "no"]),
    ("empty_answer", ["hi", "yes", "hi", ""]),
])
def test_what_would_stop_training_is_shown_in_its_words(
        check: str, row: list[str], make_recipe: Callable[..., Recipe], tokenizer: Any,
        preview: Callable[..., Any], write_rows: Callable[..., Path]) -> None:
    path = write_rows(GOOD, row)
    recipe = make_recipe(data={"train": str(path)})
    with pytest.raises(UserError) as refusal:
        read_data(recipe.data, tokenizer, 0)
    seen = preview(recipe)
    assert list(seen.problems) == refusal.value.problems
    assert [(name, finding.check, finding.verdict, finding.places)
            for name, finding in seen.findings] == [("train", check, "error", (f"{path}:2",))]
    assert [row.place for row in seen.shown] == [f"{path}:1", f"{path}:2"]


def test_rows_without_anything_to_train_are_shown(make_recipe: Callable[..., Recipe],
                                                  preview: Callable[..., Any],
                                                  tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": weight},
    ]}) + "\n" for weight in (1, 0)), encoding="utf-8")
    seen = preview(make_recipe(data={"train": str(path)}))
    assert [row.supervised_tokens > 0 for row in seen.shown] == [True, False]
    assert [problem.where for problem in seen.problems] == [f"{path}:2"]


@pytest.mark.parametrize("policy", ["error", "drop", "truncate", "split"])
def test_long_rows(policy: str, make_recipe: Callable[..., Recipe], tokenizer: Any,
                   preview: Callable[..., Any], write_rows: Callable[..., Path]) -> None:
    path = write_rows(GOOD, ["hi", "blue " * 60], GOOD)
    recipe = make_recipe(data={"train": str(path), "eval": None, "max_length_tokens": 32,
                               "on_long": policy})
    seen = preview(recipe, f"{path.name}:2")
    length = seen.lengths[0].longest
    assert seen.lengths[0].longer == 1
    shown = [n for row in seen.shown for piece in row.pieces for n in piece.ids]
    remarks = [row.remark for row in seen.shown]
    if policy == "error":
        with pytest.raises(UserError) as refusal:
            read_data(recipe.data, tokenizer, 0)
        assert list(seen.problems) == refusal.value.problems
        assert remarks == [""]
        assert len(shown) == length
        return
    assert not seen.problems
    assert seen.reports[0][1] == read_data(recipe.data, tokenizer, 0)[0].report
    if policy == "drop":
        assert remarks == ["left out: longer than 32 tokens"]
        assert len(shown) == length
    elif policy == "truncate":
        assert remarks == [f"cut: tokens 1 to 32 of {length}"]
        assert len(shown) == 32
    else:
        assert len(seen.shown) == -(-(length - 1) // 31)
        assert len(shown) == length + len(seen.shown) - 1  # neighbours share a token


def test_rows_by_name(make_recipe: Callable[..., Recipe], preview: Callable[..., Any],
                      write_rows: Callable[..., Path]) -> None:
    path = write_rows(GOOD, ["hi", "yes", "hi", ""], ["one", "two"], ["one", "two"])
    checks = {"empty_answer": "drop", "duplicates": "drop"}
    recipe = make_recipe(data={"train": str(path), "checks": checks})
    seen = preview(recipe, str(path) + ":1", path.name + ":2", "2", path.name + ":4")
    assert [(row.place.rpartition(":")[2], row.remark.partition(":")[0]) for row in seen.shown] \
        == [("1", ""), ("2", "left out"), ("3", ""), ("4", "left out")]
    assert "empty_answer" in seen.shown[1].remark
    (held_out,) = preview(recipe, "5", split="eval").shown
    assert held_out.place.endswith("eval.jsonl:5")


def test_a_held_out_row_is_said_to_be_one(make_recipe: Callable[..., Recipe],
                                          preview: Callable[..., Any]) -> None:
    recipe = make_recipe(data={"eval": None, "eval_fraction": 0.5})
    remarks = {row.remark for row in preview(
        recipe, *(f"train.jsonl:{line}" for line in range(1, 13))).shown}
    assert remarks == {"", "not among these: held out"}


@pytest.mark.parametrize("name", ["nowhere.jsonl:1", "train.jsonl:13", "train.jsonl:0", "0", "13",
                                  "first", "train.jsonl:", "-1"])
def test_a_row_that_is_not_there(name: str, make_recipe: Callable[..., Recipe],
                                 preview: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"^--row: "):
        preview(make_recipe(), name)


def test_rows_that_fit_no_format_still_stop(make_recipe: Callable[..., Recipe],
                                            preview: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": 3}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2"):
        preview(make_recipe(data={"train": str(path)}))


def test_rows_that_may_be_dropped_are_counted_as_training_does(
        make_recipe: Callable[..., Recipe], tokenizer: Any, preview: Callable[..., Any],
        tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a", "completion": answer}) + "\n"
                            for answer in ("b", "c<|end|>", 3, "d", "d")), encoding="utf-8")
    recipe = make_recipe(data={"train": str(path), "eval": None, "checks": dict.fromkeys(
        ("unusable", "special_tokens", "duplicates"), "drop")})
    seen = preview(recipe)
    assert seen.reports == (("train", read_data(recipe.data, tokenizer, 0)[0].report),)
    assert (seen.reports[0][1].rows_read, seen.reports[0][1].rows_used) == (5, 2)


def test_a_stream_is_shown_by_its_first_block(make_recipe: Callable[..., Recipe],
                                              preview: Callable[..., Any]) -> None:
    recipe = make_recipe(data={"streaming": True, "shuffle_rows": 8})
    seen = preview(recipe, "train.jsonl:1", "8")
    assert seen.reports[0][1].rows_used >= 8
    assert seen.batching.steps == seen.reports[0][1].rows_used // 4
    assert seen.shown[0].place.endswith(":1")
    assert seen.shown[0].pieces
    assert any("streaming" in notice for notice in seen.reports[0][1].notices)


@pytest.mark.parametrize("way", ["padded", "padding_free", "packed"])
def test_batching_counts_what_is_computed(way: str, make_recipe: Callable[..., Recipe],
                                          tokenizer: Any, preview: Callable[..., Any]) -> None:
    """Against the tensors that training would make."""
    recipe = make_recipe(data={"max_length_tokens": 64}, training={"batching": way, "steps": None})
    train, _ = read_data(recipe.data, tokenizer, recipe.training.seed)
    order = train.order(recipe.training.seed)
    feed = EpochFeed(train, order, 4, order.rows_per_epoch)
    batches = []
    for step in range(3):
        examples = feed.step(step)
        layout = Layout(way, 2, 64, flat=True)  # as with SDPA, by sequence
        batches += [collate(examples.tokens, part, layout, 0)
                    for part in split_rows(examples.lengths, layout, 1)]
    (seen,) = [each for each in preview(recipe).batching.ways if each.batching == way]
    assert seen.micro_batches == len(batches)
    assert seen.computed_tokens == sum(batch.computed_tokens for batch in batches)
    assert seen.real_tokens == sum(batch.tokens for batch in batches)
    assert seen.supervised_tokens == sum(batch.supervised_tokens for batch in batches)
    assert preview(recipe).batching.chosen.value == way


# ---- lengths


@pytest.mark.parametrize("lengths", [
    [1], [5, 5, 5], list(range(1, 101)), [10] * 99 + [100_000], [100, 101, 200, 201], [2048] * 3])
def test_a_histogram_counts_every_row_once(lengths: list[int]) -> None:
    bins = histogram([np.array(lengths), np.array([7])])
    assert [sum(counts) for counts in zip(*(each.rows for each in bins), strict=True)] \
        == [len(lengths), 1]
    assert len(bins) <= 11
    for each in bins:
        assert each.rows[0] == sum(each.holds(length) for length in lengths)
    assert all(one.last is not None and one.last + 1 == other.first
               for one, other in pairwise(bins))


def test_bars_grow_with_what_they_count() -> None:
    assert bar(0, 8, 1) == ""
    assert [bar(count, 8, 1) for count in range(1, 9)] == list("▏▎▍▌▋▊▉█")
    assert bar(1, 10_000, 10) == "▏"
    assert bar(10_000, 10_000, 10) == "█" * 10
