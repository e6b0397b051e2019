"""Rows of files: every kind, where each row stands, and what is refused."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lorafit.data.rows import MAX_EXAMPLES, Row
from lorafit.data.sources import READERS, Location, read_rows
from lorafit.errors import UserError

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c é 😀", "completion": "d"}]
LINE_KINDS = [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt"]  # the others are tables
BOUNDARIES = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r"  # line ends to some, but not to JSON lines

texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(BOUNDARIES + '",\n\t'),
                max_size=20)
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
    assert fields(write("a.ndjson", Path(name).read_bytes())) == ROWS


def test_blank_lines_are_skipped_and_counted_as_lines() -> None:
    name = write("a.jsonl", '\n{"a": 1}\n\n   \n{"a": 2}')
    assert places(name) == ["a.jsonl:2", "a.jsonl:5"]


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_data() -> None:
    name = write("a.jsonl", b'\xef\xbb\xbf{"a": "x"}\r\n{"a": "y"}\r\n')
    assert fields(name) == [{"a": "x"}, {"a": "y"}]


@plain
@given(st.lists(st.dictionaries(texts, texts | st.integers() | st.lists(texts), min_size=1),
                min_size=1, max_size=6))
@example([{"a": BOUNDARIES}, {BOUNDARIES: 1}])
def test_any_json_lines_read_back_equal(values: list[dict[str, Any]]) -> None:
    for ascii_only in (True, False):
        name = write("a.jsonl", "".join(json.dumps(value, ensure_ascii=ascii_only) + "\n"
                                        for value in values))
        assert fields(name) == values
        assert places(name) == [f"a.jsonl:{n}" for n in range(1, len(values) + 1)]


def test_every_malformed_line_is_named() -> None:
    name = write("a.jsonl", '{"a": 1}\n{"a": \n[1]\n"x"\n{"a": 2}\n3\nnull\ntrue\n{"a": 1} x\n')
    found = problems(name)
    assert [problem.partition(":")[2].partition(":")[0] for problem in found] == [
        "2", "3", "4", "6", "7", "8", "9"]
    assert found[0].startswith("a.jsonl:2: not JSON: ")
    assert found[1].startswith("a.jsonl:3: a JSON array, not an object")
    assert found[2].startswith("a.jsonl:4: a JSON string, not an object")
    assert "each line must be one JSON object" in found[0]


@pytest.mark.parametrize(("line", "what"), [
    (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice in one object"),
    (b"\0" * 40, "holds a NUL byte"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"a": ' + b"9" * 5000 + b"}", "not JSON: a whole number has more digits"),
    (b'{"a": "caf\xe9"}', "not UTF-8 text (invalid continuation byte)"),
    (b'{"a": "\xed\xa0\x80"}', "not UTF-8 text"),
    (b'{"a": "tab\there"}', "not JSON: Invalid control character at"),
])
def test_a_line_that_is_no_row_is_a_problem_among_others(line: bytes, what: str) -> None:
    found = problems(write("a.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 2}\nbroken\n'))
    assert found[0].startswith(f"a.jsonl:2: {what}")
    assert found[1].startswith("a.jsonl:4: not JSON")
    assert len(found) == 2


def test_what_python_reads_as_json_is_read() -> None:
    [row, half] = fields(write("a.jsonl", '{"a": NaN, "b": -Infinity}\n{"a": "\\ud83d \\u0000"}\n'))
    assert math.isnan(row["a"])
    assert row["b"] == -math.inf
    assert half == {"a": "\ud83d \0"}  # whether that can be trained is the format's question


def test_many_malformed_lines_are_counted_and_the_first_shown() -> None:
    name = write("a.jsonl", '{"a": 1}\n' * 5 + "broken\n" * 40)
    found = problems(name)
    assert len(found) == MAX_EXAMPLES + 1
    assert found[-1] == "… 40 of 45 rows are affected in total"


def test_a_broken_line_after_the_limit_is_not_looked_at() -> None:
    name = write("a.jsonl", '{"a": 1}\n{"a": 2}\nbroken\n')
    assert len(rows(name, limit=2)) == 2
    assert len(problems(name, limit=3)) == 1


@pytest.mark.parametrize("limit", [999, 1000, 1001, 1500, 2500])
def test_a_limit_is_exact_across_blocks(limit: int) -> None:
    name = write("a.txt", "".join(f"{n}\n" for n in range(2000)))
    assert [row.fields["text"] for row in rows(name, limit)] == list(
        map(str, range(min(limit, 2000))))


def test_an_array_under_the_name_of_json_lines_says_what_to_do() -> None:
    [problem] = problems(write("a.jsonl", '[\n{"a": 1}\n]\n'))
    assert problem.startswith("a.jsonl:1: a JSON array, not JSON lines")
    assert "name the file .json" in problem


# ---- JSON


@pytest.mark.parametrize("content", [
    json.dumps(ROWS), json.dumps(ROWS, indent=2), json.dumps({"data": ROWS}),
    "\ufeff" + json.dumps(ROWS), json.dumps(ROWS, indent=1).replace("\n", "\r\n") + "\r\n",
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
    chat = {"messages": [{"role": "user", "content": "x"}], "id": 3}
    assert fields(write("a.json", json.dumps(chat, indent=2))) == [chat]


@plain
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
                    lambda children: st.lists(children, max_size=3)
                    | st.dictionaries(texts, children, max_size=3), max_leaves=12),
       st.sampled_from([None, 0, 2]))
def test_any_json_list_reads_back_equal(value: Any, indent: int | None) -> None:
    values = [{"a": value}, {}, {"b": value, "c": [value]}]
    name = write("a.json", json.dumps(values, indent=indent, ensure_ascii=False))
    assert fields(name) == values


@pytest.fixture(scope="module")
def long_list() -> str:
    """A JSON list of some ten megabytes, whose characters and elements straddle every window."""
    return json.dumps([{"text": "é😀" * (n % 700), "n": n, "deep": [[n]] * (n % 5)}
                       for n in range(14000)], ensure_ascii=False, indent=1)


@pytest.mark.parametrize("wrap", [False, True])
def test_a_list_that_is_longer_than_what_is_held_reads_back_equal(
    long_list: str, wrap: bool,
) -> None:
    name = write("a.json", f'{{"rows": {long_list}}}' if wrap else long_list)
    assert fields(name) == json.loads(long_list)


@pytest.mark.parametrize(("found", "instead", "at"), [
    ('"n": 7500,', '"n": 7500', 0), ('"n": 6000', '"n": x', 0), ('"n": 13999', '"n": tru', 0),
    ('"n": 5000', '"n": 5000, "n": 5001', None),
])
def test_damage_far_in_a_long_list_is_named(
    long_list: str, found: str, instead: str, at: int | None,
) -> None:
    damaged = long_list.replace(found, instead)
    [problem] = problems(write("a.json", damaged))
    if at is None:
        assert problem.startswith("a.json row 5001: the key 'n' stands twice")
    else:
        with pytest.raises(json.JSONDecodeError) as reference:
            json.loads(damaged)
        assert problem.startswith(f"a.json:{reference.value.lineno}: "
                                  f"not JSON: {reference.value.msg}")


@pytest.mark.parametrize(("tail", "what"), [
    (', "more": 1}', "not JSON: Expecting '}'"), ("", "not JSON: ends before '}'"),
    ("} x", "not JSON: Extra data"),
])
def test_an_object_around_a_long_list_must_end_with_it(
    long_list: str, tail: str, what: str,
) -> None:
    [problem] = problems(write("a.json", f'{{"rows": {long_list}{tail}'))
    assert problem.startswith(f"a.json:{long_list.count(chr(10)) + 1}: {what}")


@pytest.mark.parametrize(("content", "what"), [
    ('[{"a": 1},\n{"a": }]', "a.json:2: not JSON: "),
    ('[{"a": 1}\n,\n{"a": 2}', "a.json:3: not JSON: ends before ','"),
    ('[{"a": 1}\n{"a": 2}]', "a.json:2: not JSON: Expecting ','"),
    ('[{"a": 1},\n]', "a.json:2: not JSON: Expecting value"),
    ('[{"a": 1}]\n]', "a.json:2: not JSON: Extra data"),
    ('[{"a": "open', "a.json:1: not JSON: Unterminated string"),
    ("[", "a.json:1: not JSON: "),
    ("[{}, 5]", "a.json row 2: a JSON number, not an object"),
    ('[{"a": 1, "a": 2}]', "a.json row 1: the key 'a' stands twice in one object"),
    ('{"a": 1, "a": 2}', "a.json row 1: the key 'a' stands twice in one object"),
    ('"text"', "a.json: a JSON string, not a list of objects"),
    ("[[1]]", "a.json row 1: a JSON array, not an object"),
    ("[" * 100_000, "a.json:1: nested too deeply"),
    (f'[{{"a": {"9" * 5000}}}]', "a.json:1: not JSON: "),
    ('{"a": 1}\n{"a": broken}\n', "a.json:2: not JSON: "),
    ('{\n"a": 1\n}\n{\n"a": 2\n}\n', "a.json:4: not JSON: Extra data\n    put the objects into"),
])
def test_malformed_json_is_named(content: str, what: str) -> None:
    [problem] = problems(write("a.json", content))
    assert problem.startswith(what)


def test_every_element_that_is_no_row_is_named() -> None:
    found = problems(write("a.json", '[{}, 5, {"a": 1, "a": 1}, {"a": 1}, null, "x"]'))
    assert [problem.split(":")[0] for problem in found] == [
        "a.json row 2", "a.json row 3", "a.json row 5", "a.json row 6"]


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
    values = [(a.replace("\0", ""), b.replace("\0", "")) for a, b in values]
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="," if ending == "csv" else "\t", quoting=csv.QUOTE_ALL)
    writer.writerows([("prompt", "completion"), *values])
    name = write(f"a.{ending}", buffer.getvalue())
    assert fields(name) == [{"prompt": a, "completion": b} for a, b in values]


@pytest.mark.parametrize(("content", "what"), [
    ("a,b\n1,2\n1,2,3\n", "a.csv:3: 3 columns where the header has 2"),
    ("a,b\n1\n", "a.csv:2: 1 columns where the header has 2"),
    ("a,a\n1,2\n", "a.csv:1: a column name stands twice"),
    (",a,b\n0,1,2\n", "a.csv:1: column 1 of 3 has no name"),
    ("a,b,\n1,2,\n", "a.csv:1: column 3 of 3 has no name"),
    ('a,b\n1,2\n"open,2\n3,4\n', "a.csv:3: not valid CSV"),
    ('a,b\n"x"y,2\n', "a.csv:2: not valid CSV"),
    ('"a,b\n', "a.csv:1: not valid CSV"),
    ("\n1,2\n", "a.csv:2: 2 columns where the header has 0"),
    ("a,b\n1,x\0y\n", "a.csv:2: holds a NUL byte"),
    (b"a,b\xff\n1,2\n", "a.csv:1: not UTF-8 text (invalid start byte)"),
    (b'a,b\n"1\r\n2\n3","x\ny\xff"\n', "a.csv:5: not UTF-8 text (invalid start byte)"),
])
def test_a_malformed_table_is_named_by_the_line_where_the_row_starts(
    content: str | bytes, what: str,
) -> None:
    [problem] = problems(write("a.csv", content))
    assert problem.startswith(what)


def test_every_malformed_row_of_a_table_is_named_also_before_it_breaks() -> None:
    found = problems(write("a.csv", 'a,b\n1\n1,2\n1,2,3\n"x"y,2\n'))
    assert [problem.split(": ")[0] for problem in found] == ["a.csv:2", "a.csv:4", "a.csv:5"]


def test_blank_lines_of_a_table_are_skipped() -> None:
    name = write("a.csv", "a,b\n\n1,2\n\n3,4\n")
    assert places(name) == ["a.csv:3", "a.csv:5"]


# ---- text


def test_text_has_a_row_for_each_line_that_is_not_blank() -> None:
    name = write("a.txt", "first\n\n  second \r\n")
    assert fields(name) == [{"text": "first"}, {"text": "  second "}]
    assert places(name) == ["a.txt:1", "a.txt:3"]


def test_only_a_line_feed_ends_a_line_of_text() -> None:
    name = write("a.txt", f"x{BOUNDARIES}y\nlast")
    assert fields(name) == [{"text": f"x{BOUNDARIES}y"}, {"text": "last"}]


# ---- what every kind refuses


@pytest.mark.parametrize("ending", LINE_KINDS)
def test_an_empty_file_is_refused(ending: str) -> None:
    for content in ("", "\n \n" if ending not in (".csv", ".tsv") else "a,b\n", "\n\n"):
        [problem] = problems(write(f"a{ending}", content))
        assert problem.startswith(f"a{ending}: the data set is empty")


@pytest.mark.parametrize("ending", LINE_KINDS)
def test_bytes_that_are_not_utf8_are_named_by_their_line(ending: str) -> None:
    good = {".jsonl": '{"a": "x"}\n', ".ndjson": '{"a": "x"}\n', ".json": "[\n"}
    line = good.get(ending, "ab\n").encode()
    name = write(f"a{ending}", line * 3 + b"caf\xe9\n" + line)
    [problem] = problems(name)
    assert problem.startswith(f"a{ending}:4: not UTF-8 text")
    assert "convert the file to UTF-8" in problem


@pytest.mark.parametrize("ending", LINE_KINDS)
@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-32"])
def test_another_encoding_is_called_by_its_name(ending: str, encoding: str) -> None:
    [problem] = problems(write(f"a{ending}", '{"a": "x"}\n'.encode(encoding)))
    assert problem.startswith(f"a{ending}: {encoding} text, not UTF-8 text")
    assert f"iconv -f {encoding}" in problem


@pytest.mark.parametrize("name", ["rows.xml", "rows", "rows.xml.gz", "rows.gz"])
def test_an_unknown_kind_of_file_lists_the_known_ones(name: str) -> None:
    [problem] = problems(write(name, "x"))
    assert "unknown kind of data file" in problem
    assert all(ending in problem for ending in [*READERS, ".gz", ".zst", ".xz"])


def test_the_ending_may_be_in_capitals() -> None:
    assert fields(write("A.JSONL", '{"a": 1}\n')) == [{"a": 1}]


@plain
@given(st.binary(max_size=200), st.sampled_from(sorted(READERS)))
def test_arbitrary_bytes_raise_nothing_but_a_user_error(content: bytes, ending: str) -> None:
    try:
        found = rows(write(f"a{ending}", content))
    except UserError as error:
        assert str(error).startswith(f"a{ending}")  # noqa: PT017
    else:
        assert all(isinstance(row.fields, dict) for row in found)
