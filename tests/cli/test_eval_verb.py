"""`lorafit eval` as a person types it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lorafit.cli.main import _run
from tests.evaluate.conftest import CODES, train_on, write_rows

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step on four rows, two of which it holds out."""
    folder = tmp_path_factory.mktemp("typed")
    rows = write_rows(folder / "rows.jsonl", CODES)
    return train_on(folder, rows, rows, steps=1)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types a command in this process; exit code, standard output and error."""

    def type_(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lorafit", *map(str, arguments)])
        capsys.readouterr()
        code = _run()
        said = capsys.readouterr()
        return code, said.out, said.err

    return type_


@pytest.mark.long
def test_a_process_prints_scores_differences_and_answers(run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lorafit", "eval", str(run), "--pattern", r"(\d+)", "--rows", "3"],
        capture_output=True, text=True, timeout=240, env={**os.environ, "COLUMNS": "160"})
    assert done.returncode == 0, done.stderr
    for words in ("adapter: answers to 3 rows", "match by pattern", "perplexity", "less base",
                  "sample answers", "✗", "kept ", r"pattern   (\d+) (last match)"):
        assert words in done.stdout
    assert (run / "evaluation.json").exists()


def test_json_holds_the_same_for_scripts_and_nothing_else_is_printed(
        run: Path, typed: Typed, tmp_path: Path) -> None:
    code, out, _ = typed("eval", run, "--json", "-", "--name", "mine")
    assert code == 0
    assert json.loads(out) == json.loads((run / "evaluations" / "mine.json").read_text())
    code, out, _ = typed("eval", "--compare", run, run, "--name", "mine", "--json",
                         tmp_path / "c.json")
    assert code == 0
    assert json.loads((tmp_path / "c.json").read_text())["sides"][1]["score"]["rows"] == 4
    code, out, _ = typed("eval", "--compare", run, "--name", "mine")
    assert code == 0
    assert "side by side" in out


@pytest.mark.parametrize(("arguments", "words"), [
    (["{run}", "{run}"], ["only one run", "--also"]),
    (["{run}", "--pattern", "("], ["--pattern: '(' is no regular expression"]),
    (["{run}", "--pattern", "#### (x)"], ["--pattern: the pattern", "finds nothing in any"]),
    (["{run}", "--data", "nowhere.jsonl"], ["--data nowhere.jsonl: no such file"]),
    (["{run}", "--merged", "nowhere"], ["nowhere: no such model", "lorafit merge"]),
    (["{run}", "--also", "{run}/checkpoints"], ["checkpoints: holds no adapter_config.json"]),
    (["{run}", "--name", "../x"], ["--name ../x: is no name"]),
    (["{tiny}", "--name", "x", "--data", "{run}/../rows.jsonl"], ["--name x: is no run", "--json"]),
    (["{run}", "--set", "model.base=x"], ["only evaluation.", "--set model.base=x"]),
    (["{run}", "--num-fewshot", "2"], ["--num-fewshot: is of --tasks"]),
    (["{run}/adapter"], ["is no run", "--data FILE"]),
    (["{tiny}"], ["is no run", "--data FILE"]),
    (["--compare", "{run}/adapter"], ["has no evaluation"]),
    (["--compare", "{run}", "--rows", "2"], ["--rows: evaluates, and --compare does not"]),
])
def test_bad_input_is_one_message_with_place_and_remedy(
        run: Path, typed: Typed, arguments: list[str], words: list[str]) -> None:
    from lorafit.model.base import TINY

    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code, out, err = typed("eval", *(each.format(run=run, tiny=TINY) for each in arguments))
    assert code == 2, out + err
    assert err.startswith("error: ")
    for each in words:
        assert each in err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_pattern_in_the_recipe_is_refused_with_its_line(tmp_path: Path, typed: Typed) -> None:
    recipe = tmp_path / "r.yaml"
    for pattern, words in ((r"#### (-?[\d,.]+)", "put the pattern in quotes"),
                           (r"'#### \d+'", "has no group")):
        recipe.write_text("model: {base: tiny}\ndata: {train: rows.jsonl}\noutput: {dir: run}\n"
                          f"evaluation:\n  pattern: {pattern}\n")
        code, _, err = typed("check", recipe)
        assert code == 2
        assert f"{recipe}:5: evaluation.pattern" in err
        assert words in err


def test_tasks_without_lm_eval_name_the_command_that_installs_it(run: Path, typed: Typed,
                                                                 monkeypatch) -> None:
    import importlib.util

    if importlib.util.find_spec("lm_eval") is not None:
        pytest.skip("lm-eval is installed here")
    code, _, err = typed("eval", run, "--tasks", "gsm8k")
    assert code == 2
    assert "pip install 'lorafit[lm-eval]'" in err
