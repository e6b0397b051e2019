"""Evaluations of several runs side by side, and when they cannot be."""

import json
import shutil
from pathlib import Path

import pytest

from lorafit.errors import UserError
from lorafit.evaluate.contenders import open_subject
from lorafit.evaluate.evaluation import evaluate
from lorafit.evaluate.kept import compare, keep
from lorafit.model.base import TINY
from lorafit.run_dir import write_json
from tests.evaluate.conftest import CODES, train_on, write_rows
from tests.evaluate.test_evaluation import Heard, measured


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


def test_other_settings_other_rows_and_other_tokens_are_said_not_hidden(two, tmp_path):
    first, second = two
    kept(first, name="here"), kept(second, "evaluation.max_new_tokens=3", name="here")
    side = compare([first, second], "here").sides[-1]
    assert "max_new_tokens 3, not 12" in side.why_not[0]
    assert side.difference.rows == 0
    assert side.difference.loss is not None
    fewer = write_rows(tmp_path / "fewer.jsonl", {"red": CODES["red"]})
    kept(second, data=fewer, name="here")
    side = compare([first, second], "here").sides[-1]
    assert side.difference is None
    assert "other rows: 1 from" in side.why_not[0]
    kept(second, "data.system='Be brief.'", name="here")
    side = compare([first, second], "here").sides[-1]
    assert side.difference.rows == 4
    assert side.difference.loss is None
    assert "losses of other tokens" in side.why_not[0]


def test_a_file_is_compared_like_a_run(two, known, tmp_path):
    first, _ = two
    kept(first, data=known.parent / "held.jsonl", name="there")
    subject = open_subject(TINY, None, ["evaluation.max_new_tokens=12"],
                           known.parent / "held.jsonl")
    write_json(tmp_path / "tiny.json", evaluate(subject, Heard()).as_dict())
    result = compare([first, tmp_path / "tiny.json"], None)
    assert [side.score.name for side in result.sides] == ["base", "adapter", "model"]
    assert result.sides[-1].difference.lost == 2


@pytest.mark.parametrize(("content", "message"), [
    ("{", "is no evaluation"), ("[]", "is no evaluation"), ('{"a": 1}', "is no evaluation"),
    (json.dumps({"kind": "rows", "format": 0}), "another version"),
    (json.dumps({"kind": "tasks", "format": 1}), "of tasks")])
def test_what_is_no_evaluation_is_refused(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        compare([path, path])


def test_a_run_that_was_not_evaluated_is_refused(known, tmp_path):
    run = Path(shutil.copytree(known, tmp_path / "run"))
    with pytest.raises(UserError, match="has no evaluation") as caught:
        compare([run])
    assert f"lorafit eval {run}" in str(caught.value)
