"""YAML text to plain values: what is kept, what is refused, and that the lines are right."""

import datetime
import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.errors import UserError
from lorafit.recipe.reading import parse_scalar, read_yaml

# Text that YAML 1.1 leaves unquoted although it looks like a value here ("1e5") is excluded: the
# reader deliberately takes it for the number it is.
texts = st.text().filter(lambda text: isinstance(parse_scalar(text), str))
# Integers of more than 20 digits become floats.
scalars = (
    st.none() | st.booleans() | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False) | texts
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
documents = st.dictionaries(texts, values, min_size=1, max_size=5)


def read(text: str) -> Any:
    document = read_yaml(text, "r.yaml")
    assert document.problems == []
    return document.values


def refusal(text: str) -> str:
    """What the reader says about a text that it refuses, as one message."""
    try:
        document = read_yaml(text, "r.yaml")
    except UserError as error:
        return str(error)
    assert document.problems, f"not refused: {document.values!r}"
    return "\n".join(map(str, document.problems))


@given(documents)
def test_whatever_yaml_dumps_reads_back_equal(value: dict[str, Any]) -> None:
    assert read(yaml.safe_dump(value)) == value


@given(documents)
def test_flow_style_reads_back_equal(value: dict[str, Any]) -> None:
    assert read(yaml.safe_dump(value, default_flow_style=True)) == value


@given(documents)
def test_types_are_kept_and_not_only_equality(value: dict[str, Any]) -> None:
    def types(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: types(child) for key, child in item.items()}
        return [types(child) for child in item] if isinstance(item, list) else type(item)

    assert types(read(yaml.safe_dump(value))) == types(value)


@settings(max_examples=300)
@given(st.text())
def test_arbitrary_text_raises_nothing_but_a_user_error(text: str) -> None:
    try:
        read_yaml(text, "r.yaml")
    except UserError as error:
        assert str(error).startswith("r.yaml")  # noqa: PT017


@settings(max_examples=300)
@given(st.text(alphabet="ab:-?[]{}!&*#|>%@`'\"\\\t\n ,.0x~<U", max_size=30))
def test_text_made_of_yaml_signs_raises_nothing_but_a_user_error(text: str) -> None:
    try:
        read_yaml(text, "r.yaml")
    except UserError as error:
        assert str(error).startswith("r.yaml")  # noqa: PT017


@pytest.mark.parametrize(("text", "value"), [
    ("1e-5", 1e-5), ("1.0e-5", 1e-5), ("2E+3", 2000.0), (".5", 0.5), ("5.", 5.0), ("1e5", 1e5),
    ("12", 12), ("-3", -3), ("+4", 4), ("1_000", 1000), ("010", 10), ("08", 8),
    ("true", True), ("Yes", True), ("off", False), ("null", None), ("~", None), ("", None),
    ("2024-05-01", "2024-05-01"), ("12:30", "12:30"), ("0x1F", "0x1F"), ("1.2.3", "1.2.3"),
    ("e5", "e5"), ("1e", "1e"), ("q_proj", "q_proj"), ("NaN", "NaN"), ("inf", "inf"),
])
def test_a_plain_scalar_means_what_a_person_expects(text: str, value: Any) -> None:
    found = read(f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


def test_infinity_and_nan_have_yamls_spelling() -> None:
    found = read("[.inf, -.inf, .nan]")
    assert found[:2] == [math.inf, -math.inf]
    assert math.isnan(found[2])


def test_a_dumped_date_stays_text() -> None:
    day = datetime.date(2024, 5, 1)
    assert read(yaml.safe_dump({"day": day})) == {"day": "2024-05-01"}


def test_quotes_keep_text_text() -> None:
    assert read("""{a: "1e-5", b: '12', c: "true", d: 'null'}""") == {
        "a": "1e-5", "b": "12", "c": "true", "d": "null"}


def test_an_alias_stands_for_the_values_of_its_anchor() -> None:
    assert read("a: &x [1, 2]\nb: *x") == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n"])
def test_a_text_without_values_reads_as_none(text: str) -> None:
    assert read(text) is None


def test_a_duplicate_key_is_named_with_both_lines() -> None:
    message = refusal("adapter:\n  rank: 1\n  alpha: 2\n  rank: 3\n")
    assert "r.yaml:4: adapter.rank is written twice (first in line 2)" in message


def test_the_same_key_in_quotes_is_a_duplicate_too() -> None:
    assert "written twice" in refusal("a: 1\n'a': 2\n")


def test_every_duplicate_is_reported() -> None:
    message = refusal("a: 1\na: 2\nb: {c: 1, c: 2}\n")
    assert "r.yaml:2: a is written twice" in message
    assert "r.yaml:3: b.c is written twice" in message


@pytest.mark.parametrize("text", [
    "a: !!python/object/apply:os.system ['true']", "a: !!str 5", "a: !custom x", "a: !!int '5'",
    "a: !!set {x}", "a: !!binary aGk=", "!!map {a: 1}", "!!str a: 1", "a: !<tag:example> 1",
])
def test_a_tag_is_refused_with_its_line(text: str) -> None:
    message = refusal(f"# first line\n{text}")
    assert message.startswith("r.yaml:2: the tag ")
    assert "is refused" in message


def test_merge_keys_are_refused() -> None:
    message = refusal("a: &x {k: 1}\nb:\n  <<: *x\n")
    assert message.startswith("r.yaml:3: merge keys (<<) are refused")


def test_multiplying_aliases_are_refused_before_they_fill_the_memory() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    assert "aliases that refer to themselves or multiply are refused" in refusal(bomb)


def test_an_alias_to_itself_is_refused() -> None:
    assert "aliases that refer to themselves" in refusal("a: &x [*x]")
    assert "aliases that refer to themselves" in refusal("a: &x {b: *x}")


@pytest.mark.parametrize("text", ["a:\n\tb: 1\n", "\ta: 1\n", "a:\n  b: 1\n\tc: 2\n"])
def test_a_tab_for_indentation_is_named_as_such(text: str) -> None:
    message = refusal(text)
    assert "indent with spaces" in message
    line = next(number for number, part in enumerate(text.split("\n"), 1) if "\t" in part)
    assert f"r.yaml:{line}: " in message


@pytest.mark.parametrize(("text", "line"), [
    ("a: 1\nb: [1, 2\n", 3), ("a: 1\nb: c: d\n", 2), ("a: 1\n b: 2\n", 2), ("a: 'x\n", 2),
    ("a: 1\nb: *unknown\n", 2), ("a: 1\n--- \nb: 2\n", 2), ("a: 1\n\nb: @x\n", 3),
    ("a: 1\nb: \0\n", 2), ("a: 1\n}\n", 2), ("key\nother: 1\n", 2),
])
def test_a_syntax_error_is_named_with_its_line(text: str, line: int) -> None:
    assert refusal(text).startswith(f"r.yaml:{line}: ")


@pytest.mark.parametrize("text", [
    '"\\UFFFFFFFF"', "%YAML " + "9" * 5000 + ".1\n---\na: 1", "[" * 5000, "- " * 5000,
    "{a: " * 3000, '"\\x', "%", "!!", "? [a, b]\n: 1", "? {a: 1}\n: 1",
])
def test_what_breaks_the_parser_is_a_user_error(text: str) -> None:
    assert refusal(text).startswith("r.yaml")


@given(st.lists(st.sampled_from(["", "# note"]), max_size=6),
       st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_each_key_has_the_line_it_stands_in(head: list[str], gaps: list[int]) -> None:
    lines = list(head)
    expected = {}
    for number, gap in enumerate(gaps):
        lines += [""] * gap
        lines.append(f"section{number}:")
        expected[f"section{number}",] = len(lines)
        lines.append("  key: 1")
        expected[f"section{number}", "key"] = len(lines)
        lines += ["  items:", "    - a", "    - b"]
        expected[f"section{number}", "items", 1] = len(lines)
    document = read_yaml("\n".join(lines) + "\n", "r.yaml")
    assert expected.items() <= document.lines.items()


def test_a_missing_key_has_the_line_of_its_section() -> None:
    document = read_yaml("a: 1\nadapter:\n  rank: 1\n", "r.yaml")
    assert document.line_of(("adapter", "alpha")) == 2
    assert document.line_of(("adapter", "rank")) == 3
