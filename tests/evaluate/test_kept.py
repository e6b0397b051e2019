"""Evaluations of several runs side by side, and when they cannot be."""

import json
import shutil
from pathlib import Path

import pytest

from lorafit.errors import UserError
from lorafit.evaluate.kept import compare, keep
from lorafit.model.base import TINY
from lorafit.run_dir import write_json
from tests.evaluate.conftest import CODES, train_on, write_rows
from tests.evaluate.test_evaluation import measured


def kept(run: Path, *overrides: str, name: str | None = None, data: Path | None = None) -> Path:
    result, subject = measured(run, *overrides, data=data)
    return keep(result, subject, name)


@pytest.fixture(scope="module")
def two(known: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run that knows two codes, and one that was hardly trained, on the same held-out rows."""
    folder = tmp_path_factory.mktemp("two")
    first = Path(shutil.copytree(known, folder / "first"))
    second = train_on(folder, known.parent / "rows.jsonl", known.parent / "held.jsonl", "second", 1)
    return first, second


def test_runs_are_compared_row_by_row(two):
    first, second = two
    kept(first), kept(second)
    result = compare([first, second])
    sides = {(Path(side.where).name, side.score.name): side for side in result.sides}
    assert list(sides) == [("first", "base"), ("first", "adapter"), ("second", "adapter")]
    change = sides["second", "adapter"].difference
    assert (change.rows, change.gained, change.lost) == (4, 0, 2)
    assert change.loss == pytest.approx(sides["second", "adapter"].score.loss
                                        - sides["first", "adapter"].score.loss)
    assert sides["first", "adapter"].difference is None
    assert not any(side.why_not for side in result.sides)


def test_the_newest_that_were_made_alike_are_taken(two):
    first, second = two
    alike = kept(first), kept(second)
    kept(second, "evaluation.max_new_tokens=3")
    result = compare([first, second])
    assert {side.evaluation for side in result.sides} == {path.stem for path in alike}


@pytest.mark.parametrize(("overrides", "rows", "reasons"), [
    ([], None, []),
    (["evaluation.max_new_tokens=3"], None, ["max_new_tokens 3, not 12"]),
    (["data.system='Be brief.'"], None, ["losses of other tokens"]),
    ([], {"red": CODES["red"]}, ["other rows: 1 from"]),
], ids=["alike", "settings", "tokens", "rows"])
def test_what_cannot_be_compared_is_said_and_left_out(two, known, tmp_path, overrides, rows,
                                                      reasons):
    """A file of the base by itself beside a run: the same rows, unless something differs."""
    first, _ = two
    if not (first / "evaluations" / "here.json").exists():
        kept(first, name="here")
    held = known.parent / "held.jsonl" if rows is None else write_rows(tmp_path / "r.jsonl", rows)
    result, _ = measured(TINY, "evaluation.max_new_tokens=12", *overrides, data=held)
    write_json(tmp_path / "tiny.json", result.as_dict())
    sides = compare([first, tmp_path / "tiny.json"]).sides
    assert [side.score.name for side in sides] == ["base", "adapter", "model"]
    found, why_not = sides[-1].difference, sides[-1].why_not
    assert len(why_not) == len(reasons)
    assert all(reason in said for reason, said in zip(reasons, why_not, strict=True))
    if rows is not None:
        assert found is None
        return
    assert (found.loss is None) == ("losses of other tokens" in reasons)
    assert (found.rows, found.lost) == ((0, 0) if "max_new_tokens 3, not 12" in reasons else (4, 2))


@pytest.mark.parametrize(("content", "message"), [
    ("{", "is no evaluation"), ("[]", "is no evaluation"), ('{"a": 1}', "is no evaluation"),
    (json.dumps({"kind": "rows", "format": 0}), "another version"),
    (json.dumps({"kind": "tasks", "format": 1}), "of held-out rows")])
def test_what_is_no_evaluation_is_refused(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        compare([path, path])


def test_a_run_that_was_not_evaluated_is_refused(known, tmp_path):
    run = Path(shutil.copytree(known, tmp_path / "run"))
    with pytest.raises(UserError, match="has no evaluation") as caught:
        compare([run])
    assert "lorafit eval RUN" in str(caught.value)
