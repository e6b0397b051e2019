"""Tokens estimated in a second, against what training counts."""

import json
from pathlib import Path

import numpy as np
import pytest

from lorafit.data import estimate as estimating
from lorafit.data.dataset import read_data
from lorafit.data.estimate import estimate
from lorafit.model.base import load_tokenizer
from lorafit.plan.tokenizer import fast_tokenizer
from lorafit.recipe.schema import Data, Model

TINY = Model(base="tiny")
TRAIN = Path(__file__).parents[2] / "recipes" / "quickstart" / "train.jsonl"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))


def test_a_small_source_is_read_whole_and_counted_exactly(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(TRAIN.read_text().splitlines(keepends=True)[:100]))
    data = Data(train=str(rows), eval_fraction=0.1)
    train, held_out = estimate(data, fast_tokenizer(TINY), 0)
    real, real_held_out = read_data(data, load_tokenizer(TINY), 0)
    assert held_out is not None
    assert real_held_out is not None
    assert (train.rows, held_out.rows) == (len(real), len(real_held_out)) == (90, 10)
    assert train.tokens + held_out.tokens == pytest.approx(
        real.report.tokens + real_held_out.report.tokens, abs=1)


def test_what_is_in_the_cache_is_taken_from_there_to_the_token():
    data = Data(train=str(TRAIN), eval_fraction=0.1, max_rows=900)
    real, held_out = read_data(data, load_tokenizer(TINY), 0)
    train, held = estimate(data, fast_tokenizer(TINY), 0)
    assert train.is_exact
    assert "cache" in train.how
    assert (train.rows, train.tokens, train.supervised_tokens) == (
        len(real), real.report.tokens, real.report.supervised_tokens)
    assert held is not None
    assert held_out is not None
    assert held.tokens == held_out.report.tokens


def test_a_sample_is_near_what_is_counted_and_says_how_near(monkeypatch):
    monkeypatch.setattr(estimating, "SAMPLE_S", 0.0)  # one block
    monkeypatch.setattr(estimating, "COUNT_S", 0.0)
    data = Data(train=str(TRAIN))
    train, _ = estimate(data, fast_tokenizer(TINY), 0)
    real, _ = read_data(data, load_tokenizer(TINY), 0)
    assert not train.is_exact
    assert len(train.lengths) == 64
    assert train.rows == pytest.approx(len(real), rel=0.02)
    assert train.tokens == pytest.approx(real.report.tokens,
                                         rel=4 * train.relative_error + 0.02)


def test_several_sources_count_as_their_weights_say(tmp_path):
    short, long = tmp_path / "short.jsonl", tmp_path / "long.jsonl"
    short.write_text(json.dumps({"text": "a b"}) + "\n" + json.dumps({"text": "b a"}) + "\n")
    long.write_text("".join(json.dumps({"text": f"word {i} " * 20}) + "\n" for i in range(4)))
    train, _ = estimate(Data(train=[
        {"path": str(short), "weight": 2}, {"path": str(long)}]), fast_tokenizer(TINY), 0)
    alone = [estimate(Data(train=str(path)), fast_tokenizer(TINY), 0)[0] for path in (short, long)]
    assert train.rows == 8
    assert train.tokens == pytest.approx(2 * alone[0].tokens + alone[1].tokens, rel=0.01)


@pytest.mark.parametrize("on_long", ["drop", "truncate", "split"])
def test_long_rows_as_the_recipe_says(on_long, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"word {i} " * (5 + 60 * (i % 2))}) + "\n"
                            for i in range(20)))
    data = Data(train=str(rows), max_length_tokens=64, on_long=on_long)
    train, _ = estimate(data, fast_tokenizer(TINY), 0)
    real, _ = read_data(data, load_tokenizer(TINY), 0)
    assert train.rows == pytest.approx(len(real), rel=0.05)
    assert train.tokens == pytest.approx(real.report.tokens, rel=0.05)
    assert int(np.max(train.lengths)) <= 64
