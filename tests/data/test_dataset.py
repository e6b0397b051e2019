"""From a data section to tokenised rows: lengths, held-out rows, counts and the fingerprint."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lorafit.data.chat import Tokens
from lorafit.data.dataset import (
    Examples,
    TokenisedData,
    _fingerprint,
    check_source,
    locate,
    read_examples,
    tokenise,
)
from lorafit.data.examples import Exchange, Passage
from lorafit.errors import UserError
from lorafit.model.base import TINY
from lorafit.recipe.schema import Data


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


def examples_of(*rows: Any) -> Examples:
    return Examples(list(rows), [f"rows.jsonl:{n}" for n in range(1, len(rows) + 1)], "text", "")


def run(tokenizer: Any, rows: Examples, **data: Any) -> TokenisedData:
    return tokenise(rows, Data(train="rows.jsonl", **data), tokenizer, "rows.jsonl")


SHORT = Exchange("q", "a")
LONG = Exchange("q", "a b c d e f g h i j k l m n o p")
ENDLESS_PROMPT = Exchange("q " * 100, "a")


def lengths(tokenizer: Any, *rows: Any) -> list[int]:
    return run(tokenizer, examples_of(*rows)).lengths().tolist()


# ---- long rows


def test_a_long_row_is_an_error_that_counts_and_names_the_longest(tokenizer: Any) -> None:
    short, long, endless = lengths(tokenizer, SHORT, LONG, ENDLESS_PROMPT)
    with pytest.raises(UserError) as caught:
        run(tokenizer, examples_of(SHORT, LONG, ENDLESS_PROMPT, SHORT), max_length_tokens=short)
    [problem] = caught.value.problems
    assert problem.where == "rows.jsonl:3"
    assert f"2 of 4 rows are longer than max_length_tokens {short}" in problem.what
    assert f"by {long - short + endless - short} tokens in total" in problem.what
    assert f"--set data.max_length_tokens={endless}" in problem.remedy


def test_the_remedy_for_long_rows_works(tokenizer: Any) -> None:
    rows = examples_of(SHORT, LONG)
    longest = max(lengths(tokenizer, SHORT, LONG))
    assert run(tokenizer, rows, max_length_tokens=longest).report.rows_used == 2


def test_dropped_rows_are_counted_and_the_others_unchanged(tokenizer: Any) -> None:
    short = lengths(tokenizer, SHORT)[0]
    data = run(tokenizer, examples_of(LONG, SHORT, LONG, SHORT), max_length_tokens=short,
               on_long="drop")
    report = data.report
    assert (report.rows_read, report.rows_used, report.rows_dropped_long) == (4, 2, 2)
    assert (report.rows_truncated, report.rows_dropped_unsupervised) == (0, 0)
    assert data.places == ["rows.jsonl:2", "rows.jsonl:4"]
    assert data.examples == [SHORT, SHORT]


def test_truncated_rows_keep_their_beginning_and_are_counted(tokenizer: Any) -> None:
    whole = run(tokenizer, examples_of(LONG)).rows[0]
    limit = len(whole.ids) - 3
    data = run(tokenizer, examples_of(SHORT, LONG), max_length_tokens=limit, on_long="truncate")
    assert data.report.rows_truncated == 1
    assert data.report.longest_tokens == limit
    assert data.rows[1].ids.tolist() == whole.ids[:limit].tolist()
    assert data.rows[1].supervised.tolist() == whole.supervised[:limit].tolist()


def test_a_row_that_truncation_leaves_without_an_answer_is_dropped_and_counted(
    tokenizer: Any,
) -> None:
    data = run(tokenizer, examples_of(SHORT, ENDLESS_PROMPT), max_length_tokens=20,
               on_long="truncate")
    assert data.report.rows_dropped_unsupervised == 1
    assert data.places == ["rows.jsonl:1"]


def test_nothing_left_to_train_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no row is left with a supervised token"):
        run(tokenizer, examples_of(LONG), max_length_tokens=3, on_long="drop")
    with pytest.raises(UserError, match="no row is left with a supervised token"):
        run(tokenizer, examples_of(ENDLESS_PROMPT), max_length_tokens=20, on_long="truncate")


def test_a_row_of_one_token_has_nothing_that_could_be_predicted(tokenizer: Any) -> None:
    data = run(tokenizer, examples_of(SHORT, Passage("x")), on_long="truncate")
    assert data.report.rows_used == 2
    with pytest.raises(UserError, match=r"\(0 dropped as too long, 1 without one\)"):
        run(tokenizer, examples_of(Passage("some text")), max_length_tokens=1, on_long="truncate")


words = st.lists(st.sampled_from(["one", "two", "three", "\n", "é", "def f():"]), min_size=1,
                 max_size=12).map(" ".join).filter(str.strip)


@settings(max_examples=60)
@given(rows=st.lists(st.builds(Exchange, words, words) | st.builds(Passage, words), min_size=1,
                     max_size=8),
       limit=st.integers(2, 40), policy=st.sampled_from(["drop", "truncate"]))
def test_every_row_is_accounted_for_and_has_something_to_learn(
    tokenizer: Any, rows: list[Any], limit: int, policy: str,
) -> None:
    try:
        data = run(tokenizer, examples_of(*rows), max_length_tokens=limit, on_long=policy)
    except UserError as error:
        assert "no row is left" in str(error)  # noqa: PT017
        return
    report = data.report
    assert report.rows_read == len(rows)
    assert report.rows_read == (
        report.rows_used + report.rows_dropped_long + report.rows_dropped_unsupervised)
    assert len(data.rows) == len(data.places) == len(data.examples) == report.rows_used
    assert all(row.supervised[1:].any() for row in data.rows)
    assert all(len(row.ids) == len(row.supervised) <= limit for row in data.rows)
    assert report.tokens == data.lengths().sum()
    assert report.longest_tokens == data.lengths().max()
    assert report.supervised_tokens == sum(int(row.supervised[1:].sum()) for row in data.rows)


def test_more_rows_than_a_block_keep_their_order(tokenizer: Any) -> None:
    rows = [Passage(f"row {n}") for n in range(2050)]
    data = run(tokenizer, examples_of(*rows))
    assert [tokenizer.decode(row.ids) for row in data.rows[::500]] == [
        f"row {n}<|end|>" for n in range(0, 2050, 500)]


# ---- what a template refuses


def test_rows_that_the_template_refuses_are_named(tokenizer: Any, tmp_path: Path) -> None:
    template = tmp_path / "picky.jinja"
    template.write_text(
        "{%- for m in messages -%}{%- if 'bad' in m['content'] -%}"
        "{{- raise_exception('a bad word') -}}{%- endif -%}"
        "{{- '<|' + m['role'] + '|>' + m['content'] + '<|end|>' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}")
    rows = examples_of(SHORT, Exchange("bad", "a"), SHORT, Exchange("q", "bad"))
    with pytest.raises(UserError) as caught:
        run(tokenizer, rows, chat_template=str(template))
    assert [problem.where for problem in caught.value.problems] == ["rows.jsonl:2", "rows.jsonl:4"]
    assert all("a bad word" in problem.what for problem in caught.value.problems)


def test_a_template_that_cannot_be_read_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.chat_template: the template cannot be read"):
        run(tokenizer, examples_of(SHORT), chat_template=str(tmp_path / "none.jinja"))


# ---- held-out rows


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(40)))
    return path


@settings(max_examples=50)
@given(fraction=st.floats(0.001, 0.97), seed=st.integers(0, 2**31 - 1))
def test_held_out_rows_are_disjoint_deterministic_and_as_many_as_asked_for(
    tmp_path_factory: pytest.TempPathFactory, fraction: float, seed: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "numbered.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(40)))
    data = Data(train=str(path), eval_fraction=fraction)
    train, held_out = read_examples(data, seed)
    assert held_out is not None
    assert len(held_out.examples) == max(1, round(40 * fraction))
    both = train.places + held_out.places
    assert sorted(both) == sorted(f"{path}:{n}" for n in range(1, 41))
    again, held_again = read_examples(data, seed)
    assert (again, held_again) == (train, held_out)


def test_another_seed_holds_out_other_rows(numbered: Path) -> None:
    data = Data(train=str(numbered), eval_fraction=0.25)
    chosen = {tuple(read_examples(data, seed)[1].places) for seed in range(10)}
    assert len(chosen) == 10


def test_held_out_rows_keep_their_content_and_the_cap(numbered: Path) -> None:
    data = Data(train=str(numbered), eval_fraction=0.5, max_eval_rows=3)
    train, held_out = read_examples(data, 0)
    assert held_out is not None
    assert len(held_out.examples) == 3
    assert len(train.examples) == 20, "capped rows do not go back to training"
    for example, place in zip(held_out.examples, held_out.places, strict=True):
        assert example == Passage(f"row {int(place.rpartition(':')[2]) - 1}")


def test_a_fraction_that_leaves_no_row_to_train_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"text": "only"}\n')
    with pytest.raises(UserError, match=r"data\.eval_fraction: holding out 0\.5 of 1 rows"):
        read_examples(Data(train=str(path), eval_fraction=0.5), 0)


def test_a_held_out_file_is_read_beside_the_training_rows(numbered: Path, tmp_path: Path) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text('{"prompt": "p", "completion": "c"}\n' * 5)
    train, held_out = read_examples(
        Data(train=str(numbered), eval=str(held), max_eval_rows=2), 0)
    assert len(train.examples) == 40
    assert held_out is not None
    assert held_out.examples == [Exchange("p", "c")] * 2


def test_the_cheap_check_looks_at_the_first_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "t"}\n' * 100 + '{"other": 1}\n')
    data = Data(train=str(path))
    check_source(data, locate(data.train), "train")
    with pytest.raises(UserError, match=r"rows\.jsonl:101: the row lacks the column text"):
        read_examples(data, 0)
    path.write_text('{"text": "t"}\n' * 99 + '{"other": 1}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:100: the row lacks the column text"):
        check_source(data, locate(data.train), "train")


# ---- the fingerprint


token_rows = st.lists(
    st.lists(st.tuples(st.integers(0, 500), st.booleans()), min_size=1, max_size=20),
    min_size=1, max_size=5)


def rows_of(pairs: list[list[tuple[int, bool]]]) -> list[Tokens]:
    return [Tokens(np.array([token for token, _ in row], dtype=np.int32),
                   np.array([mask for _, mask in row])) for row in pairs]


@given(token_rows, st.data())
def test_the_fingerprint_changes_with_any_token_mask_or_order(
    pairs: list[list[tuple[int, bool]]], data: st.DataObject,
) -> None:
    before = _fingerprint(rows_of(pairs))
    assert _fingerprint(rows_of(pairs)) == before
    i = data.draw(st.integers(0, len(pairs) - 1))
    j = data.draw(st.integers(0, len(pairs[i]) - 1))
    token, mask = pairs[i][j]
    for changed in ((token + 1, mask), (token, not mask)):
        pairs[i][j] = changed
        assert _fingerprint(rows_of(pairs)) != before
    pairs[i][j] = token, mask
    assert _fingerprint(rows_of([*pairs, [(1, True)]])) != before
    if pairs != pairs[::-1]:
        assert _fingerprint(rows_of(pairs[::-1])) != before


def test_rows_that_join_differently_have_different_fingerprints() -> None:
    assert _fingerprint(rows_of([[(1, True)], [(2, True)]])) != \
        _fingerprint(rows_of([[(1, True), (2, True)]]))


def test_the_fingerprint_sees_what_the_model_sees(tokenizer: Any) -> None:
    same = run(tokenizer, examples_of(SHORT)).report.fingerprint
    assert run(tokenizer, examples_of(SHORT)).report.fingerprint == same
    for changed in (run(tokenizer, examples_of(SHORT), render="plain"),
                    run(tokenizer, examples_of(SHORT), system="s"),
                    run(tokenizer, examples_of(Exchange("q", "a.")))):
        assert changed.report.fingerprint != same


# ---- real data


def test_gsm8k_is_read_whole_and_every_answer_is_trained(gsm8k: Path, tokenizer: Any) -> None:
    data = Data(train=str(gsm8k / "train.jsonl"), eval=str(gsm8k / "test.jsonl"))
    train, held_out = read_examples(data, 0)
    assert held_out is not None
    assert (len(train.examples), len(held_out.examples)) == (7473, 1319)
    assert train.format == "prompt_completion"
    some = train.take(np.arange(0, 7473, 25))
    tokenised = tokenise(some, data, tokenizer, data.train)
    assert tokenised.report.rows_used == len(some.examples)
    for row, example in zip(tokenised.rows, some.examples, strict=True):
        assert isinstance(example, Exchange)
        assert tokenizer.decode(row.ids[row.supervised]) == example.completion + "<|end|>"
