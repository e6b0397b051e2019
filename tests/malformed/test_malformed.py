"""Malformed recipes and data: refused before anything heavy is imported, by the kinds and files
that scripts/reliability asks the command line with."""

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorafit.cli.before import check_cheaply
from lorafit.errors import UserError
from lorafit.recipe.loading import load_recipe
from lorafit.run_dir import RunDir

FOLDER = Path(__file__).parent
SCRIPTS = FOLDER.parent.parent / "scripts"
BY_HAND = sorted(f"{which}/{path.name}" for which in ("recipes", "data")
                 for path in (FOLDER / which).iterdir())

many = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 2**32)


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture
def fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], str | None]:
    """What is wrong with how a case is refused in this process, before anything heavy is imported;
    None when nothing is."""
    # However slow the machine, and wherever the bad row stands: what these leave is read later.
    monkeypatch.setattr("lorafit.data.first_look.LOOK_S", 600.0)
    monkeypatch.setattr("lorafit.data.first_look.LOOK_ROWS", 10**9)
    from reliability.malformed.case import RECIPE, fault_of_message, lay_out

    def ask(case: Any) -> str | None:
        folder = tmp_path / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        lay_out(case, folder)
        monkeypatch.chdir(folder)
        before = sorted(folder.rglob("*"))
        try:
            recipe = load_recipe(Path(RECIPE), case.arguments[1:])
            check_cheaply(recipe, RunDir(Path(recipe.output.dir)), False)
        except UserError as error:
            assert sorted(folder.rglob("*")) == before
            return fault_of_message(f"error: {error}\n", case.place)
        return "accepted"

    return ask


@pytest.mark.parametrize("name", BY_HAND)
def test_what_people_get_wrong_is_refused(name: str, fault: Callable[[Any], str | None]) -> None:
    from reliability.malformed import written

    which, _, file = name.partition("/")
    assert fault((written.recipes() if which == "recipes" else written.data())[file]) is None


@many
@given(st.data(), seeds)
def test_a_malformed_recipe_of_any_kind_is_refused(
    fault: Callable[[Any], str | None], data: st.DataObject, seed: int,
) -> None:
    from reliability.malformed import recipes

    kinds = {kind.__name__: kind for kind in recipes.KINDS if kind is not recipes.no_such_layer}
    kind = data.draw(st.sampled_from(sorted(kinds)))
    assert fault(kinds[kind](Random(seed))) is None


@many
@given(st.data(), seeds)
def test_malformed_data_of_any_kind_is_refused(
    fault: Callable[[Any], str | None], data: st.DataObject, seed: int,
) -> None:
    from reliability.malformed import data as kinds_of_data

    slow = ("endless_line", "needs_a_tokenizer")  # these are asked of processes
    kinds = {kind.__name__: kind for kind in kinds_of_data.KINDS if kind.__name__ not in slow}
    kind = data.draw(st.sampled_from(sorted(kinds)))
    assert fault(kinds[kind](Random(seed))) is None


def test_the_shipped_recipes_are_fine_before_they_are_changed(
    fault: Callable[[Any], str | None],
) -> None:
    from reliability.malformed.case import with_recipe
    from reliability.malformed.recipe_text import SHIPPED, local

    for path in SHIPPED:
        assert fault(local(path).case()) == "accepted", path
        with_mark = with_recipe(b"\xef\xbb\xbf" + local(path).bytes.replace(
            b"eval: held.jsonl", b"eval: null").replace(b"early_stopping", b"# early_stopping"), "")
        assert fault(with_mark) == "accepted", "a mark of UTF-8 is no mistake"


@pytest.mark.parametrize("form", ["chat", "sharegpt", "alpaca", "prompt_completion", "text",
                                  "preference", "judged"])
def test_drawn_rows_are_fine_before_they_are_changed(
    fault: Callable[[Any], str | None], form: str,
) -> None:
    from reliability.malformed import data
    from reliability.malformed.case import with_rows
    from reliability.malformed.rows import FLAT, as_lines, good

    for seed in range(20):
        random = Random(seed)
        rows = good(form, random.randrange(1, 40), random)
        assert fault(data._packed(random, as_lines(rows), "", form)) == "accepted"
        if form in FLAT:
            name, raw = data._file_of(random, rows)
            assert fault(with_rows({name: raw}, "", name)) == "accepted"


@pytest.mark.parametrize("said", [
    "r.yaml:3: unknown key\n    remove it", "error: r.yaml:3: unknown key",
    "error: r.yaml:4: unknown key\n    remove it",
    "error: r.yaml:3: a\n    b\nerror: r.yaml:3: c\n    d", "error: r.yaml:3: a\n    b\nc",
    "error: r.yaml:3: " + "x" * 20_000 + "\n    remove it", "",
])
def test_a_refusal_that_is_not_as_it_must_be_is_seen(said: str) -> None:
    from reliability.malformed.case import fault_of_message

    assert fault_of_message(said, "r.yaml:3") is not None
    assert fault_of_message("error: r.yaml:3: unknown key\n    remove it\n", "r.yaml:3") is None


def test_an_ending_that_is_not_as_it_must_be_is_seen() -> None:
    from reliability.malformed.case import GOOD_RECIPE, Outcome, fault_of, with_recipe

    case = with_recipe(GOOD_RECIPE.encode(), "r.yaml")
    said = "error: r.yaml: no\n    do"
    assert fault_of(case, Outcome(2, "", said)) is None
    assert fault_of(case, Outcome(2, "9 rows tokenised\n", said)) is None
    for outcome in (Outcome(0, "", ""), Outcome(1, "", said), Outcome(2, "hello", said),
                    Outcome(2, "", f"Traceback\n{said}"), Outcome(2, "", said, written=["out"])):
        assert fault_of(case, outcome) is not None


def test_a_few_are_asked_of_the_command_line(tmp_path: Path) -> None:
    from reliability.row import Setting
    from reliability.rows.malformed import ROW

    tally = ROW.ask(Setting(tmp_path, seed=1, jobs=2), ROW.times_in_tests)
    assert tally.asked >= ROW.times_in_tests
    assert tally.passed == tally.asked, "\n".join(tally.problems)
    assert len(tally.remarks) == 2
    assert not list(tmp_path.rglob("work"))


@pytest.mark.long
def test_what_a_process_leaves_behind_is_seen(tmp_path: Path) -> None:
    """A good recipe trains, which is what a malformed one must not do."""
    from reliability.malformed.asking import ask
    from reliability.malformed.case import GOOD_RECIPE, fault_of, with_recipe

    case = with_recipe(GOOD_RECIPE.encode(), "r.yaml")
    outcome = ask(case, "train", tmp_path / "asked")
    assert outcome.code == 0
    assert "out/adapter/adapter_model.safetensors" in outcome.written
    assert fault_of(case, outcome) is not None
