"""Rows of files: every kind, where each row stands, and what is refused."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lorafit.data.sources import MAX_EXAMPLES, READERS, Location, Row, read_rows
from lorafit.errors import UserError

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c é 😀", "completion": "d"}]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
plain = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def rows(name: str, limit: int | None = None) -> list[Row]:
    return read_rows(Location(name), default_split="train", limit=limit)


def fields(name: str) -> list[dict[str, Any]]:
    return [row.fields for row in rows(name)]


def places(name: str) -> list[str]:
    return [row.where for row in rows(name)]


def problems(name: str, limit: int | None = None) -> list[str]:
    with pytest.raises(UserError) as caught:
        rows(name, limit)
    return [str(problem) for problem in caught.value.problems]


# ---- JSON lines


def test_json_lines_are_rows_with_their_lines() -> None:
    name = write("a.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n")
    assert fields(name) == ROWS
    assert places(name) == ["a.jsonl:1", "a.jsonl:2"]


def test_blank_lines_are_skipped_and_counted_as_lines() -> None:
    name = write("a.jsonl", '\n{"a": 1}\n\n   \n{"a": 2}')
    assert places(name) == ["a.jsonl:2", "a.jsonl:5"]


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_data() -> None:
    name = write("a.jsonl", b'\xef\xbb\xbf{"a": "x"}\r\n{"a": "y"}\r\n')
    assert fields(name) == [{"a": "x"}, {"a": "y"}]


@plain
@given(st.lists(st.dictionaries(texts, texts | st.integers() | st.lists(texts), min_size=1),
                min_size=1, max_size=6))
def test_any_json_lines_read_back_equal(values: list[dict[str, Any]]) -> None:
    for ascii_only in (True, False):
        name = write("a.jsonl", "".join(json.dumps(value, ensure_ascii=ascii_only) + "\n"
                                        for value in values))
        assert fields(name) == values


def test_every_malformed_line_is_named() -> None:
    name = write("a.jsonl", '{"a": 1}\n{"a": \n[1]\n"x"\n{"a": 2}\n3\nnull\ntrue\n{"a": 1} x\n')
    found = problems(name)
    assert [problem.partition(":")[2].partition(":")[0] for problem in found] == [
        "2", "3", "4", "6", "7", "8", "9"]
    assert found[0].startswith("a.jsonl:2: not JSON: ")
    assert found[1].startswith("a.jsonl:3: a JSON array, not an object")
    assert found[2].startswith("a.jsonl:4: a JSON string, not an object")
    assert "each line must be one JSON object" in found[0]


def test_many_malformed_lines_are_counted_and_the_first_shown() -> None:
    name = write("a.jsonl", '{"a": 1}\n' * 5 + "broken\n" * 40)
    found = problems(name)
    assert len(found) == MAX_EXAMPLES + 1
    assert found[-1] == "… 40 of 45 rows are affected in total"


def test_a_broken_line_after_the_limit_is_not_looked_at() -> None:
    name = write("a.jsonl", '{"a": 1}\n{"a": 2}\nbroken\n')
    assert len(rows(name, limit=2)) == 2
    assert len(problems(name, limit=3)) == 1


def test_an_array_under_the_name_of_json_lines_says_what_to_do() -> None:
    [problem] = problems(write("a.jsonl", '[\n{"a": 1}\n]\n'))
    assert problem.startswith("a.jsonl:1: a JSON array, not JSON lines")
    assert "name the file .json" in problem


# ---- JSON


@pytest.mark.parametrize("content", [
    json.dumps(ROWS), json.dumps(ROWS, indent=2), json.dumps({"data": ROWS}),
])
def test_a_json_list_and_an_object_with_one_list_are_rows(content: str) -> None:
    name = write("a.json", content)
    assert fields(name) == ROWS
    assert places(name) == ["a.json row 1", "a.json row 2"]


def test_json_lines_under_the_name_of_json_are_read_as_lines() -> None:
    name = write("a.json", "\n".join(map(json.dumps, ROWS)))
    assert fields(name) == ROWS
    assert places(name) == ["a.json:1", "a.json:2"]


def test_a_single_json_object_is_one_row() -> None:
    assert fields(write("a.json", '{"prompt": "a", "completion": "b"}')) == [ROWS[0]]


@pytest.mark.parametrize(("content", "what"), [
    ('[{"a": 1},\n{"a": }]', "a.json:2: not JSON: "),
    ("[{}, 5]", "a.json row 2: a JSON number, not an object"),
    ('"text"', "a.json: a JSON string, not a list of objects"),
    ("[[1]]", "a.json row 1: a JSON array, not an object"),
    ("[" * 100_000, "a.json: nested too deeply"),
    (f'[{{"a": {"9" * 5000}}}]', "a.json: not JSON: "),
    ('{"a": 1}\n{"a": broken}\n', "a.json:2: not JSON: "),
])
def test_malformed_json_is_named(content: str, what: str) -> None:
    [problem] = problems(write("a.json", content))
    assert problem.startswith(what)


# ---- CSV and TSV


def test_csv_quoting_keeps_separators_quotes_and_line_breaks() -> None:
    name = write("a.csv", 'prompt,completion\n"a, b","say ""hi"""\n"two\nlines",x\nlast,y\n')
    assert fields(name) == [
        {"prompt": "a, b", "completion": 'say "hi"'},
        {"prompt": "two\nlines", "completion": "x"}, {"prompt": "last", "completion": "y"}]
    assert places(name) == ["a.csv:2", "a.csv:3", "a.csv:5"]  # where each row starts


@plain
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5), st.sampled_from(["csv", "tsv"]))
@example([("a\tb", 'c"d,e\r\nf')], "tsv")
def test_any_table_reads_back_equal(values: list[tuple[str, str]], ending: str) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="," if ending == "csv" else "\t", quoting=csv.QUOTE_ALL)
    writer.writerows([("prompt", "completion"), *values])
    name = write(f"a.{ending}", buffer.getvalue())
    assert fields(name) == [{"prompt": a, "completion": b} for a, b in values]


@pytest.mark.parametrize(("content", "what"), [
    ("a,b\n1,2\n1,2,3\n", "a.csv:3: 3 columns where the header has 2"),
    ("a,b\n1\n", "a.csv:2: 1 columns where the header has 2"),
    ("a,a\n1,2\n", "a.csv:1: a column name stands twice"),
    ('a,b\n1,2\n"open,2\n3,4\n', "a.csv:3: not valid CSV"),
    ('a,b\n"x"y,2\n', "a.csv:2: not valid CSV"),
    ('"a,b\n', "a.csv:1: not valid CSV"),
    ("\n1,2\n", "a.csv:2: 2 columns where the header has 0"),
])
def test_a_malformed_table_is_named_by_the_line_where_the_row_starts(
    content: str, what: str,
) -> None:
    [problem] = problems(write("a.csv", content))
    assert problem.startswith(what)


def test_blank_lines_of_a_table_are_skipped() -> None:
    name = write("a.csv", "a,b\n\n1,2\n\n3,4\n")
    assert places(name) == ["a.csv:3", "a.csv:5"]


# ---- text and Parquet


def test_text_has_a_row_for_each_line_that_is_not_blank() -> None:
    name = write("a.txt", "first\n\n  second \r\n")
    assert fields(name) == [{"text": "first"}, {"text": "  second "}]
    assert places(name) == ["a.txt:1", "a.txt:3"]


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("_own_cache")
def test_parquet_rows_are_numbered() -> None:
    import pyarrow
    from pyarrow import parquet

    conversations = [{"messages": [{"role": "user", "content": "é"},
                                   {"role": "assistant", "content": "b"}]}] * 3
    parquet.write_table(pyarrow.Table.from_pylist(conversations), "a.parquet")
    assert fields("a.parquet") == conversations
    assert places("a.parquet") == [f"a.parquet row {n}" for n in (1, 2, 3)]


@pytest.mark.usefixtures("_own_cache")
def test_a_damaged_parquet_file_is_refused() -> None:
    [problem] = problems(write("a.parquet", b"PAR1 not a table"))
    assert problem.startswith("a.parquet: not readable as Parquet: ")


# ---- what every kind refuses


@pytest.mark.parametrize("ending", [e for e in READERS if e != ".parquet"])
def test_an_empty_file_is_refused(ending: str) -> None:
    for content in ("", "\n \n" if ending not in (".csv", ".tsv") else "a,b\n"):
        [problem] = problems(write(f"a{ending}", content))
        assert problem.startswith(f"a{ending}: the data set is empty")


@pytest.mark.parametrize("ending", [e for e in READERS if e != ".parquet"])
def test_bytes_that_are_not_utf8_are_named_by_their_line(ending: str) -> None:
    good = {".jsonl": '{"a": "x"}\n', ".json": "[\n"}.get(ending, "ab\n").encode()
    name = write(f"a{ending}", good * 3 + b"caf\xe9\n" + good)
    [problem] = problems(name)
    assert problem.startswith(f"a{ending}:4: not UTF-8 text")
    assert "convert the file to UTF-8" in problem


def test_a_missing_file_says_where_it_was_looked_for() -> None:
    [problem] = problems("nowhere.jsonl")
    assert problem.startswith("nowhere.jsonl: no such file")
    assert "working directory" in problem
    assert problems("a/b/c/d")[0].startswith("a/b/c/d: no such file")


def test_a_directory_is_refused() -> None:
    Path("folder").mkdir()
    assert problems("folder")[0].startswith("folder: is a directory")


@pytest.mark.parametrize("name", ["rows.xml", "rows", "rows.jsonl.gz"])
def test_an_unknown_kind_of_file_lists_the_known_ones(name: str) -> None:
    [problem] = problems(write(name, "x"))
    assert "unknown kind of data file" in problem
    assert all(ending in problem for ending in READERS)


def test_the_ending_may_be_in_capitals() -> None:
    assert fields(write("A.JSONL", '{"a": 1}\n')) == [{"a": 1}]


@pytest.mark.parametrize("name", ["owner/name", "squad"])
def test_a_name_without_an_ending_is_a_hub_data_set(name: str) -> None:
    assert Location(name).is_hub


@pytest.mark.parametrize("name", ["./owner/name", "/data", "~/x", "a/b/c", "a.jsonl", "x/y.csv"])
def test_what_looks_like_a_path_is_a_file(name: str) -> None:
    assert not Location(name).is_hub


def test_a_home_that_nobody_has_is_a_missing_file() -> None:
    assert "no such file" in problems("~nobody-of-this-name/rows.jsonl")[0]


@plain
@given(st.binary(max_size=200), st.sampled_from([e for e in READERS if e != ".parquet"]))
def test_arbitrary_bytes_raise_nothing_but_a_user_error(content: bytes, ending: str) -> None:
    try:
        found = rows(write(f"a{ending}", content))
    except UserError as error:
        assert str(error).startswith(f"a{ending}")  # noqa: PT017
    else:
        assert all(isinstance(row.fields, dict) for row in found)
