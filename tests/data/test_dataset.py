"""From a data section to rows for training: lengths, checks, held-out rows, the cache."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lorafit.data import cache
from lorafit.data.dataset import TokenisedData, read_data
from lorafit.data.examples import Exchange, Passage
from lorafit.data.first_look import LOOK_ROWS, look_at
from lorafit.errors import MachineError, UserError
from lorafit.model.base import TINY
from lorafit.recipe.schema import Data

SHARED = [HealthCheck.function_scoped_fixture]
ALL_ALLOWED = {"duplicates": "allow", "overlap": "allow", "language": "allow"}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


Run = Callable[..., TokenisedData]


@pytest.fixture
def run(tokenizer: Any, tmp_path: Path) -> Run:
    """The training rows of a file with these prompts and completions."""

    def read(*rows: tuple[str, str], name: str = "rows.jsonl", **data: Any) -> TokenisedData:
        return read_data(Data(train=str(write(tmp_path / name, rows)), **data), tokenizer, 0)[0]

    return read


def write(path: Path, rows: Any) -> Path:
    path.write_text("".join(
        json.dumps({"prompt": prompt, "completion": completion}) + "\n"
        for prompt, completion in rows), encoding="utf-8")
    return path


def lines(data: TokenisedData) -> list[int]:
    return [data.place(i).number for i in range(len(data))]


SHORT, OTHER = ("q", "a"), ("Q2", "b")
LONG = ("q", "a b c d e f g h i j k l m n o p")
ENDLESS_PROMPT = ("q " * 100, "a")


# ---- long rows


def test_a_long_row_is_an_error_that_counts_and_names_the_longest(run: Run) -> None:
    short, long, endless = run(SHORT, LONG, ENDLESS_PROMPT).lengths.tolist()
    with pytest.raises(UserError) as caught:
        run(SHORT, LONG, ENDLESS_PROMPT, max_length_tokens=short)
    [problem] = caught.value.problems
    assert problem.where.endswith("rows.jsonl:3")
    assert f"2 of 3 rows are longer than max_length_tokens {short}" in problem.what
    assert f"by {long - short + endless - short} tokens in total" in problem.what
    assert f"--set data.max_length_tokens={endless}" in problem.remedy
    assert run(SHORT, LONG, ENDLESS_PROMPT, max_length_tokens=endless).report.rows_used == 3


def test_dropped_rows_are_counted_and_the_others_unchanged(run: Run) -> None:
    short = run(SHORT).lengths[0]
    data = run(LONG, SHORT, ENDLESS_PROMPT, OTHER, max_length_tokens=int(short) + 2,
               on_long="drop")
    report = data.report
    assert (report.rows_read, report.rows_used, report.rows_dropped_long) == (4, 2, 2)
    assert (report.rows_truncated, report.rows_dropped_unsupervised) == (0, 0)
    assert lines(data) == [2, 4]
    assert data.examples([0, 1]) == [Exchange(*SHORT), Exchange(*OTHER)]


def test_truncated_rows_keep_their_beginning_and_are_counted(run: Run) -> None:
    whole = run(LONG).tokens(0)
    limit = len(whole) - 3
    data = run(SHORT, LONG, max_length_tokens=limit, on_long="truncate")
    assert data.report.rows_truncated == 1
    assert data.report.longest_tokens == limit
    assert data.tokens(1).ids.tolist() == whole.ids[:limit].tolist()
    assert data.tokens(1).supervised.tolist() == whole.supervised[:limit].tolist()
    assert data.report.supervised_tokens == sum(
        data.tokens(i).supervised_tokens for i in range(2))


def test_a_row_that_truncation_leaves_without_an_answer_is_dropped_and_counted(run: Run) -> None:
    data = run(SHORT, ENDLESS_PROMPT, max_length_tokens=20, on_long="truncate")
    assert data.report.rows_dropped_unsupervised == 1
    assert lines(data) == [1]


def test_answers_that_are_all_unwanted_say_so(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "judged.jsonl"
    path.write_text('{"prompt": "p", "completion": "c", "label": false}\n' * 3 + '{"label": 1}\n',
                    encoding="utf-8")
    data = Data(train=str(path), checks={"unusable": "drop"})
    with pytest.raises(UserError, match=r"\(1 dropped by checks, 3 judged unwanted"):
        read_data(data, tokenizer, 0)


def test_nothing_left_to_train_is_an_error(run: Run) -> None:
    with pytest.raises(UserError, match="no row is left with a supervised token"):
        run(LONG, max_length_tokens=3, on_long="drop")
    with pytest.raises(UserError, match="no row is left with a supervised token"):
        run(ENDLESS_PROMPT, max_length_tokens=20, on_long="truncate")


words = st.lists(st.sampled_from(["one", "two", "three", "\n", "é", "def f():"]), min_size=1,
                 max_size=12).map(" ".join).filter(str.strip)


@settings(max_examples=40, deadline=None, suppress_health_check=SHARED)
@given(rows=st.lists(st.tuples(words, words), min_size=1, max_size=8),
       limit=st.integers(2, 40), policy=st.sampled_from(["drop", "truncate", "split"]))
def test_every_row_is_accounted_for_and_has_something_to_learn(
    run: Run, rows: list[Any], limit: int, policy: str,
) -> None:
    try:
        data = run(*rows, max_length_tokens=limit, on_long=policy, checks=ALL_ALLOWED)
    except UserError as error:
        assert "no row is left" in str(error)  # noqa: PT017
        return
    report = data.report
    assert report.rows_read == len(rows)
    if policy != "split":
        assert report.rows_read == (
            report.rows_used + report.rows_dropped_long + report.rows_dropped_unsupervised)
    assert len(data) == report.rows_used
    tokens = [data.tokens(i) for i in range(len(data))]
    assert all(row.supervised_tokens for row in tokens)
    assert [len(row) for row in tokens] == data.lengths.tolist()
    assert max(len(row) for row in tokens) == report.longest_tokens <= limit
    assert report.tokens == sum(len(row) for row in tokens)
    assert report.supervised_tokens == sum(row.supervised_tokens for row in tokens)


@settings(max_examples=25, deadline=None, suppress_health_check=SHARED)
@given(rows=st.lists(st.tuples(words, words), min_size=1, max_size=6), limit=st.integers(2, 30))
def test_a_split_trains_each_supervised_token_exactly_once(
    run: Run, rows: list[Any], limit: int,
) -> None:
    whole = run(*rows, checks=ALL_ALLOWED)
    wanted = sorted(
        (whole.place(i).number, j) for i in range(len(whole))
        for j in range(1, len(whole.tokens(i))) if whole.tokens(i).supervised[j])
    data = run(*rows, max_length_tokens=limit, on_long="split", checks=ALL_ALLOWED)
    got = []
    for i in range(len(data)):
        piece, start = data.tokens(i), int(data.selection.start[i])
        row = whole.tokens(int(data.selection.row[i]))
        np.testing.assert_array_equal(piece.ids, row.ids[start : start + len(piece)])
        got += [(data.place(i).number, start + j) for j in range(1, len(piece))
                if piece.supervised[j]]
    assert sorted(got) == wanted
    assert data.report.supervised_tokens == whole.report.supervised_tokens
    assert data.report.rows_split == int((whole.lengths > limit).sum())


# ---- many rows, many processes, many sources


def test_more_rows_than_a_block_keep_their_order_on_any_number_of_processes(
    run: Run, tokenizer: Any,
) -> None:
    rows = [(f"ask {n}", f"row {n}") for n in range(3050)]
    one = run(*rows, workers=1, name="one.jsonl")
    two = run(*rows[:-1], rows[-1], workers=2, name="two.jsonl", system="")
    assert one.report.fingerprint == two.report.fingerprint
    assert lines(one) == list(range(1, 3051))
    for i in (0, 999, 1000, 3049):
        assert f"row {i}<|end|>" in tokenizer.decode(two.tokens(i).ids)


def test_sources_of_several_shapes_lie_one_after_the_other(tokenizer: Any, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [SHORT, OTHER])
    (tmp_path / "b.jsonl").write_text('{"text": "a passage"}\n')
    (tmp_path / "c.csv").write_text("frage,antwort\nq3,a3\n")
    data, _ = read_data(Data.model_validate({"train": [
        str(tmp_path / "a.jsonl"), {"path": str(tmp_path / "b.jsonl"), "weight": 2},
        {"path": str(tmp_path / "c.csv"), "columns": {"prompt": "frage", "completion": "antwort"}},
    ]}), tokenizer, 0)
    assert data.examples(range(4)) == [
        Exchange(*SHORT), Exchange(*OTHER), Passage("a passage"), Exchange("q3", "a3")]
    assert [str(data.place(i)).rpartition("/")[2] for i in range(4)] == [
        "a.jsonl:1", "a.jsonl:2", "b.jsonl:1", "c.csv:2"]
    assert data.report.format == "prompt_completion, text"
    order = data.order(0)
    assert order.sizes == (2, 1, 1)
    assert order.rows_per_epoch == 5


def test_only_the_first_rows_are_taken_when_the_recipe_says_so(
    tokenizer: Any, tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.jsonl", [(f"q{n}", "a") for n in range(1500)])
    for limit in (1, 7, 1000, 1001):
        data, _ = read_data(Data(train=str(path), max_rows=limit), tokenizer, 0)
        assert lines(data) == list(range(1, limit + 1))


# ---- bad rows


def test_bad_rows_are_counted_and_the_first_ten_named(run: Run, tmp_path: Path,
                                                      tokenizer: Any) -> None:
    path = write(tmp_path / "a.jsonl", [(f"q{n}", "" if n % 100 == 3 else "a")
                                        for n in range(2500)])
    with pytest.raises(UserError) as caught:
        read_data(Data(train=str(path), workers=2), tokenizer, 0)
    problems = caught.value.problems
    assert [problem.where for problem in problems[:10]] == [
        f"{path}:{n}" for n in range(4, 1000, 100)]
    assert problems[10].what == "… 25 of 2500 rows are affected in total"
    data, _ = read_data(Data(train=str(path), checks={"unusable": "drop"}), tokenizer, 0)
    assert (data.report.rows_read, data.report.rows_used) == (2500, 2475)
    assert data.report.rows_dropped_by_checks == 25
    [finding] = data.report.findings
    assert (finding.check, finding.verdict, finding.rows) == ("unusable", "drop", 25)
    assert finding.places[0] == f"{path}:4"


def test_rows_that_the_template_refuses_are_named(run: Run, tmp_path: Path) -> None:
    template = tmp_path / "picky.jinja"
    template.write_text(
        "{%- for m in messages -%}{%- if 'bad' in m['content'] -%}"
        "{{- raise_exception('a bad word') -}}{%- endif -%}"
        "{{- '<|' + m['role'] + '|>' + m['content'] + '<|end|>' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}")
    with pytest.raises(UserError) as caught:
        run(SHORT, ("bad", "a"), SHORT, ("q", "bad"), chat_template=str(template))
    *bad, hint = caught.value.problems
    assert [problem.where.rpartition("/")[2] for problem in bad] == ["rows.jsonl:2", "rows.jsonl:4"]
    assert all("a bad word" in problem.what for problem in bad)
    assert hint.remedy == "--set data.checks.unusable=drop"


@pytest.mark.parametrize("first", ["{nonsense", '{"text": 5}', "[]"])
def test_rows_that_may_be_dropped_may_be_the_first(
    tokenizer: Any, tmp_path: Path, first: str,
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(first + '\n{"text": "fine"}\n{"text": ""}\n', encoding="utf-8")
    data = Data(train=str(path), checks={"unusable": "drop"})
    assert look_at(data) == []
    rows, _ = read_data(data, tokenizer, 0)
    assert lines(rows) == [2]
    assert rows.report.rows_read == 3
    problems = look_at(Data(train=str(path)))
    assert str(problems[0]).startswith(f"{path}:1: ")


def test_the_first_look_goes_so_far_and_the_reading_to_the_end(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lorafit.data.first_look.LOOK_S", 60.0)  # rows decide
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "t"}\n' * LOOK_ROWS + '{"other": 1}\n')
    data = Data(train=str(path), checks=ALL_ALLOWED)
    assert look_at(data) == []
    with pytest.raises(UserError, match=rf"rows\.jsonl:{LOOK_ROWS + 1}: the row lacks the column"):
        read_data(data, tokenizer, 0)
    path.write_text('{"text": "t"}\n' * (LOOK_ROWS - 1) + '{"other": 1}\n')
    found, _ = look_at(data)
    assert str(found).startswith(f"{path}:{LOOK_ROWS}: the row lacks the column text")
    assert look_at(data.model_copy(update={"max_rows": 200})) == []


def test_the_first_look_finds_what_is_wrong_with_every_source(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "t"}\n{"text": 5}\n')
    (tmp_path / "held.csv").write_text("text\nfine\na,b\n")
    data = Data(train=[str(rows), str(tmp_path / "none.json")], eval=str(tmp_path / "held.csv"))
    found = look_at(data)
    assert [problem.where.rpartition("/")[2] for problem in found if problem.where] == [
        "rows.jsonl:2", "none.json", "held.csv:3"]


@pytest.mark.parametrize(("row", "check", "what"), [
    ([("a", {}), ("", {})], "empty_answer", "message 4 (assistant) is empty"),
    ([("a", {"weight": 0})], "no_supervised_token", "nothing in the row would be trained"),
])
def test_the_first_look_finds_what_the_reading_refuses(
    tmp_path: Path, tokenizer: Any, row: list[tuple[str, dict[str, int]]], check: str, what: str,
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [[turn for answer, more in answers for turn in (
        {"role": "user", "content": "u"}, {"role": "assistant", "content": answer, **more})]
        for answers in ([("fine", {})], row)]
    path.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in rows))
    data = Data(train=str(path))
    [problem] = look_at(data)
    assert problem.what == f"{what}; 1 row is like that"
    assert problem.where.endswith("rows.jsonl:2")
    with pytest.raises(UserError, match=what.partition(' (')[0]):
        read_data(data, tokenizer, 0)
    assert look_at(data, checks=False) == []  # what preview shows
    assert look_at(Data(train=str(path), checks={check: "drop"})) == []


def test_a_file_that_is_trained_and_held_out_is_found_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "t"}\n')
    twice = Data(train=str(tmp_path), eval=str(path))
    assert [problem.what for problem in look_at(twice)] == ["the file is trained on and held out"]
    assert look_at(Data(train=str(tmp_path), eval=str(path), checks=ALL_ALLOWED)) == []


# ---- checks


def findings(data: TokenisedData) -> dict[str, int]:
    return {finding.check: finding.rows for finding in data.report.findings}


def test_a_special_token_in_the_text_stops_the_run_unless_it_is_dropped(run: Run) -> None:
    rows = [SHORT, ("what does <|end|> mean?", "the end"), OTHER]
    with pytest.raises(UserError, match=r"rows\.jsonl:2: .*<\|end\|>; 1 row is like that\n"
                                        r"    mend it, or --set data\.checks\.special_tokens=drop"):
        run(*rows)
    dropped = run(*rows, checks={"special_tokens": "drop"})
    assert lines(dropped) == [1, 3]
    assert dropped.report.rows_dropped_by_checks == 1
    warned = run(*rows, checks={"special_tokens": "warn"})
    assert lines(warned) == [1, 2, 3]
    assert findings(warned) == {"special_tokens": 1}
    assert findings(run(*rows, checks={"special_tokens": "allow"})) == {}


def test_repeated_rows_are_reported_or_dropped_but_for_the_first(run: Run) -> None:
    rows = [("What is it?", "A thing."), OTHER, ("what  is it? ", "a thing."), OTHER]
    assert findings(run(*rows)) == {"duplicates": 2}
    assert lines(run(*rows, checks={"duplicates": "drop"})) == [1, 2]


def test_a_held_out_row_among_the_training_rows_stops_the_run(
    tokenizer: Any, tmp_path: Path,
) -> None:
    train = write(tmp_path / "train.jsonl", [SHORT, OTHER, LONG])
    held_out = write(tmp_path / "eval.jsonl", [OTHER])
    data = Data(train=str(train), eval=str(held_out))
    with pytest.raises(UserError, match=r"train\.jsonl:2: the row is also held out; 1 row is"):
        read_data(data, tokenizer, 0)
    dropping = data.model_copy(update={"checks": data.checks.model_copy(
        update={"overlap": "drop"})})
    rows, held = read_data(dropping, tokenizer, 0)
    assert lines(rows) == [1, 3]
    assert held is not None
    assert lines(held) == [1]


def test_rows_in_another_script_are_reported(run: Run) -> None:
    rows = [(f"What is {n}?", "A number.") for n in range(30)] + [("Что это?", "Это число.")]
    data = run(*rows)
    assert findings(data) == {"language": 1}
    [finding] = data.report.findings
    assert finding.places[0].endswith("rows.jsonl:31")
    half = rows[:2] + rows[-1:] * 2
    assert "language" not in findings(run(*half)), "half of the rows are nothing rare"


def test_every_objection_is_in_one_message(run: Run) -> None:
    with pytest.raises(UserError) as caught:
        run(("a <|user|> b", "c"), ("d", "e"), ("q", "Ã© broken"),
            checks={"encoding": "error"})
    assert len(caught.value.problems) == 2


# ---- held-out rows


@settings(max_examples=30, deadline=None)
@given(fraction=st.floats(0.001, 0.97), seed=st.integers(0, 2**31 - 1))
def test_held_out_rows_are_disjoint_deterministic_and_as_many_as_asked_for(
    tokenizer: Any, tmp_path_factory: pytest.TempPathFactory, fraction: float, seed: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "numbered.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(40)))
    data = Data(train=str(path), eval_fraction=fraction)
    train, held_out = read_data(data, tokenizer, seed)
    assert held_out is not None
    assert len(held_out) == max(1, round(40 * fraction))
    assert sorted(lines(train) + lines(held_out)) == list(range(1, 41))
    again, held_again = read_data(data, tokenizer, seed)
    assert (again.report, held_again.report) == (train.report, held_out.report)


def test_another_seed_holds_out_other_rows_and_the_cap_returns_none_to_training(
    tokenizer: Any, tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.jsonl", [(f"q{n}", f"a{n}") for n in range(40)])
    data = Data(train=str(path), eval_fraction=0.25)
    assert len({tuple(lines(read_data(data, tokenizer, seed)[1])) for seed in range(10)}) == 10
    train, held_out = read_data(
        Data(train=str(path), eval_fraction=0.5, max_eval_rows=3), tokenizer, 0)
    assert (len(train), len(held_out)) == (20, 3)
    for number, example in zip(lines(held_out), held_out.examples(range(3)), strict=True):
        assert example == Exchange(f"q{number - 1}", f"a{number - 1}")


def test_a_fraction_that_leaves_no_row_to_train_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match=r"data\.eval_fraction: holding out 0\.5 of 1 rows"):
        run(SHORT, eval_fraction=0.5)


# ---- the cache


TEMPLATE = ("{% for m in messages %}{{ m.role + ': ' + m.content + '<|end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")


def test_an_entry_is_used_again_and_any_change_makes_another(run: Run, tmp_path: Path) -> None:
    rows = [("cached?", "a"), ("cached too?", "b")]

    def keys() -> set[str]:
        return {entry.key for entry in cache.entries()}

    before = keys()
    first = run(*rows)
    assert len(keys() - before) == 1
    known = keys()
    assert run(*rows, name="moved.jsonl").report.fingerprint == first.report.fingerprint
    assert run(*rows, max_length_tokens=50, checks={"duplicates": "drop"}, workers=1) is not None
    assert keys() == known, "neither the place nor what is chosen from the rows makes new ones"
    fingerprints = {first.report.fingerprint}
    for changed in (lambda: run(rows[0], ("cached too?", "B")), lambda: run(*rows, render="plain"),
                    lambda: run(*rows, system="s"), lambda: run(*rows, train_on="all"),
                    lambda: run(*rows, train_on_end_of_turn=False),
                    lambda: run(*rows, chat_template=TEMPLATE),
                    lambda: run(*reversed(rows))):
        known = keys()
        fingerprints.add(changed().report.fingerprint)
        assert len(keys() - known) == 1
    assert len(fingerprints) == 8


def test_unusable_rows_are_named_where_they_are_now(tmp_path: Path, tokenizer: Any) -> None:
    """Another file of the same content shares the entry."""
    for name in ("one: 1.jsonl", "two row 2.jsonl"):
        path = tmp_path / name
        path.write_text('{"prompt": "p", "completion": "c"}\n{"prompt": 1}\n', encoding="utf-8")
        data, _ = read_data(Data(train=str(path), checks={"unusable": "drop"}), tokenizer, 0)
        [finding] = data.report.findings
        assert finding.places == (f"{path}:2",)


def test_a_file_that_changed_by_one_byte_is_read_again(run: Run, tmp_path: Path) -> None:
    run(("q", "seven"))
    path = tmp_path / "rows.jsonl"
    stat = path.stat()
    path.write_bytes(path.read_bytes().replace(b"seven", b"eight"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a copying tool may leave it
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    data, _ = read_data(Data(train=str(path)), tokenizer, 0)
    assert "eight" in tokenizer.decode(data.tokens(0).ids)


def test_a_damaged_entry_is_made_again(run: Run) -> None:
    before = {entry.key for entry in cache.entries()}
    first = run(("damaged?", "no"))
    ids = first.tokens(0).ids.tolist()
    [entry] = [entry for entry in cache.entries() if entry.key not in before]
    for name in ("ids.bin", "supervised.bin", "rows.bin", "store.json"):
        content = bytearray((entry.path / name).read_bytes())
        content[len(content) // 2] ^= 4
        (entry.path / name).write_bytes(content)
        again = run(("damaged?", "no"))
        assert again.tokens(0).ids.tolist() == ids
        assert again.report == first.report


@pytest.mark.long
def test_processes_that_want_the_same_rows_wait_for_the_first(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [(f"q{n}", f"a{n}") for n in range(3000)])
    script = tmp_path / "reader.py"
    script.write_text(f"""
import sys
from transformers import AutoTokenizer
from lorafit.data.dataset import read_data
from lorafit.model.base import TINY
from lorafit.recipe.schema import Data
made = []
data, _ = read_data(Data(train={str(path)!r}, workers=1), AutoTokenizer.from_pretrained(TINY), 0,
                    watch=lambda source, rows: made.append(rows))
print(data.report.fingerprint, len(made))
""", encoding="utf-8")
    running = [subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
               for _ in range(3)]
    answers = [process.communicate(timeout=120)[0].split() for process in running]
    assert len({fingerprint for fingerprint, _ in answers}) == 1
    assert sorted(int(made) > 0 for _, made in answers) == [False, False, True]


def test_the_cache_lists_and_deletes(run: Run) -> None:
    run(("to be deleted", "yes"), name="deleted.jsonl")
    entry = cache.entries()[0]
    assert entry.source.endswith("deleted.jsonl")
    assert (entry.rows, entry.size_bytes > 0) == (1, True)
    assert cache.unused_for(1) == []
    assert entry in cache.unused_for(0)
    cache.delete([entry])
    assert entry.key not in {other.key for other in cache.entries()}
    assert run(("to be deleted", "yes"), name="deleted.jsonl").report.rows_used == 1


def test_a_file_that_changes_while_it_is_read_is_refused_and_not_kept(
    tmp_path: Path, tokenizer: Any,
) -> None:
    path = write(tmp_path / "growing.jsonl", [(f"grows {n}", "a") for n in range(1500)])
    before = {entry.key for entry in cache.entries()}

    def grow(source: str, rows: int) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write('{"prompt": "late", "completion": "row"}\n')

    with pytest.raises(UserError, match=r"growing\.jsonl: changed while it was read"):
        read_data(Data(train=str(path), workers=1), tokenizer, 0, watch=grow)
    assert {entry.key for entry in cache.entries()} == before


def test_what_a_killed_process_left_is_removed_unless_somebody_is_at_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    from filelock import FileLock

    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    tokens = tmp_path / "cache" / "tokens"
    for name in ("dead", "alive"):
        (tokens / f".{name}.partial").mkdir(parents=True)
        (tokens / f".{name}.partial" / "ids.bin").write_bytes(b"0" * 100)
    with FileLock(tokens / ".alive.lock"):
        run(("q", "a"))
    assert [path.name for path in tokens.glob(".*.partial")] == [".alive.partial"]


def test_a_damaged_listing_is_listed_and_deleted(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    run(("q", "a"))
    [entry] = cache.entries()
    (entry.path / cache.ENTRY).write_text("{", encoding="utf-8")
    [damaged] = cache.entries()
    assert (damaged.key, damaged.source) == (entry.key, "(damaged)")
    cache.delete([damaged])
    assert cache.entries() == []


def test_a_cache_that_cannot_be_written_is_the_machines_fault(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(MachineError, match=r"file/tokens: the cache cannot be written.*\n.*_CACHE"):
        run(("q", "a"))


def test_a_cache_in_a_home_that_does_not_exist_says_what_to_set(
    run: Run, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LORAFIT_CACHE", "~nobody-is-called-that/cache")
    with pytest.raises(MachineError, match=r"no such home directory\n.*LORAFIT_CACHE"):
        run(("q", "a"))


# ---- real data


def test_gsm8k_is_read_whole_and_every_answer_is_trained(gsm8k: Path, tokenizer: Any) -> None:
    data = Data(train=str(gsm8k / "train.jsonl"), eval=str(gsm8k / "test.jsonl"))
    train, held_out = read_data(data, tokenizer, 0)
    assert held_out is not None
    assert (len(train), len(held_out)) == (7473, 1319)
    assert train.report.format == "prompt_completion"
    some = range(0, 7473, 25)
    for i, example in zip(some, train.examples(some), strict=True):
        assert isinstance(example, Exchange)
        tokens = train.tokens(i)
        assert tokenizer.decode(tokens.ids[tokens.supervised]) == example.completion + "<|end|>"


def test_the_preferred_answers_of_hh_rlhf_are_trained(hh_rlhf: Path, tokenizer: Any) -> None:
    data = Data(train=str(hh_rlhf), checks={"unusable": "drop", "empty_answer": "drop"})
    train, _ = read_data(data, tokenizer, 0)
    report = train.report
    assert report.format == "preference"
    assert any("the preferred answer is trained" in notice for notice in report.notices)
    assert report.rows_read == 2312
    assert 2250 < report.rows_used == 2312 - report.rows_dropped_by_checks
    for i, example in zip(range(0, 500, 50), train.examples(range(0, 500, 50)), strict=True):
        said = tokenizer.decode(train.tokens(i).ids[train.tokens(i).supervised])
        spoken = [message.content for message in example.messages if message.role == "assistant"]
        assert said == "".join(f"{text}<|end|>" for text in spoken)


# ---- templates that are none


@pytest.mark.parametrize(("template", "what"), [
    ("{% for m in messages %}{{ m }}", "cannot be compiled: .*endfor.* \\(line 1 of the temp"),
    ("{{ messages | nonsense }}", "cannot be compiled: No filter named 'nonsense'"),
    (" \n", "the template is empty"),
])
def test_a_template_that_is_none_is_one_message(
    run: Run, tmp_path: Path, template: str, what: str,
) -> None:
    path = tmp_path / "template.jinja"
    path.write_text(template)
    with pytest.raises(UserError, match=rf"^data\.chat_template: .*{what}"):
        run(SHORT, OTHER, chat_template=str(path))


def test_a_template_for_another_tokenizer_says_how_its_turns_end(run: Run) -> None:
    with pytest.raises(UserError, match=r"the turn ends with '.*<\|im_end\|>'"):
        run(SHORT, chat_template="chatml")
