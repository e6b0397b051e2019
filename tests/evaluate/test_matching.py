"""When an answer is right: whole, or by what a pattern finds."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lorafit.errors import UserError
from lorafit.evaluate.matching import Matcher, normalised, without_thoughts
from lorafit.recipe.evaluation import Evaluation

GSM8K = r"#### (-?[\d,.]+)"


def is_right(answer: str, wanted: str, **section: object) -> bool:
    matcher = Matcher(Evaluation.model_validate(section))
    return matcher.same(matcher.found(answer), matcher.found(wanted))


@pytest.mark.parametrize(("answer", "wanted", "right"), [
    ("so 16\n#### 18", "thus\n#### 18", True),
    ("#### 18.", "#### 18", True),
    ("#### 18.00", "#### 18", True),
    ("#### 1,200", "#### 1200", True),
    ("#### 12,00", "#### 1200", False),
    ("#### 3,5", "#### 35", False),
    ("#### 180", "#### 18", False),
    ("#### -18", "#### 18", False),
    ("#### 7\n#### 18", "#### 18", True),
    ("#### 18\n#### 7", "#### 18", False),
    ("it is 18", "#### 18", False),
    ("", "#### 18", False),
])
def test_gsm8k_answers(answer, wanted, right):
    assert is_right(answer, wanted, pattern=GSM8K) is right


def test_the_first_match_counts_where_the_recipe_says_so():
    """A base that goes on with the next question is judged by its first answer."""
    rambling = "#### 18\n\nQuestion: another\nAnswer: #### 7"
    assert is_right(rambling, "#### 18", pattern=GSM8K, take="first")
    assert not is_right(rambling, "#### 18", pattern=GSM8K)


def test_a_match_of_nothing_is_no_answer():
    """A pattern that may match the empty string would otherwise make every answer right."""
    matcher = Matcher(Evaluation(pattern=r"(\d*)"))
    assert matcher.found("no number at all") is None
    assert matcher.found("it is 12, I say") == "12"
    assert not matcher.same(None, None)


def test_whole_answers_are_compared_but_for_white_space_at_the_ends():
    assert is_right(" red fox\n", "red fox")
    assert not is_right("red  fox", "red fox")
    assert not is_right("1,200", "1200")  # nobody said that these are numbers
    assert not is_right("Red", "red")
    assert is_right("Red", "red", ignore_case=True)
    assert is_right("ANSWER: B", "answer: b", pattern="answer: (.)", ignore_case=True)


@given(st.decimals(min_value=-10**12, max_value=10**12, allow_nan=False, places=3))
def test_a_number_is_itself_however_it_is_written(number):
    plain = f"{number:f}"
    forms = [plain, f"{number:,f}", f"{plain}00", f" {plain} ", plain.replace("-", "−")]
    if number >= 0:
        forms += [f"+{plain}", f"${number:,f}", f"{number:f} €"]
    for form in forms:
        assert normalised(form) == number, form


@given(st.decimals(-10**9, 10**9, allow_nan=False, places=2),
       st.decimals(-10**9, 10**9, allow_nan=False, places=2))
def test_two_numbers_are_the_same_only_if_they_are_equal(a, b):
    assert (normalised(f"{a:,f}") == normalised(f"{b:f}")) is (a == b)


@given(st.text(max_size=20))
def test_any_text_is_the_same_as_itself_and_normalising_never_fails(text):
    assert normalised(text) == normalised(text)
    assert isinstance(normalised(text), Decimal | str)


@pytest.mark.parametrize("text", ["NaN", "inf", "1e5", "", "-", ".", "$", "12a", "1.2.3", "٣", "½"])
def test_what_is_no_plain_number_stays_text(text):
    assert isinstance(normalised(text), str)


def test_thoughts_are_no_part_of_an_answer_unless_the_rows_have_them():
    said = "<think>3 or 4?</think>\n4"
    assert without_thoughts(said, "4").strip() == "4"
    assert without_thoughts(said, "<think>hm</think>4") == said


def test_a_pattern_that_finds_nothing_in_the_rows_is_refused_with_one_of_them():
    matcher = Matcher(Evaluation(pattern=GSM8K), "r.yaml:7")
    with pytest.raises(UserError, match="could ever be right") as caught:
        matcher.refuse_finding_nothing(["the answer is 4", "5"])
    assert str(caught.value).startswith("r.yaml:7: ")
    assert "the answer is 4" in str(caught.value)
    matcher.refuse_finding_nothing(["none here", "#### 4"])


def test_a_pattern_that_backtracks_without_end_is_stopped():
    matcher = Matcher(Evaluation(pattern=r"^((?:a|aa)+)$"), "--pattern")
    with pytest.raises(UserError, match="repeats what repeats itself") as caught:
        matcher.found("a" * 200 + "b")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("pattern", "message"), [
    ("#### (", "no regular expression"), (r"#### \d+", "has no group"),
    (r"(\d+)/(\d+)", "has 2 groups"), ("(" * 5000, "no regular expression")], ids=range(4))
def test_a_pattern_that_cannot_be_used_is_refused(pattern, message):
    with pytest.raises(ValidationError, match=message):
        Evaluation(pattern=pattern)
