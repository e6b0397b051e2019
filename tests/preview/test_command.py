"""`lorafit preview` as a person runs it."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lorafit.errors import UserError
from lorafit.recipe.loading import dump_recipe


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lorafit", "preview", *arguments], capture_output=True, text=True,
        timeout=120, check=False, env={**os.environ, **environment})


@pytest.fixture
def recipe(make_recipe: Callable[..., object], tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(make_recipe()), encoding="utf-8")
    return str(path)


def test_a_pipe_gets_everything_without_colour(recipe: str, gsm8k: Path) -> None:
    process = run(recipe, "--set", f"data.train={gsm8k / 'train.jsonl'}", "--set",
                  "data.max_rows=200", "--row", "train.jsonl:1")
    assert (process.returncode, process.stderr) == (0, "")
    out = process.stdout
    assert "\x1b" not in out
    assert "⟦Natalia sold 48/2 = <<48/2=24>>24 clips in May.↵" in out
    assert "#### 72<|end|>⟧↵" in out
    for part in ("template", "trained", "lengths, in tokens", "median", "▸ padding_free", "packed",
                 "nothing found", "200 rows read, 200 used", "next      lorafit check"):
        assert part in out
    assert max(map(len, out.split("next  ")[0].splitlines())) <= 100
    assert not any(line != line.rstrip() for line in out.splitlines())


def test_real_conversations(recipe: str, hh_rlhf: Path) -> None:
    process = run(recipe, "--set", f"data.train={hh_rlhf}", "--set", "data.max_rows=300", "--set",
                  "data.eval=null", "--set", "data.checks.empty_answer=drop", "--rows", "5")
    assert (process.returncode, process.stderr) == (0, "")
    assert "empty_answer (train): 1 row, dropped" in process.stdout  # line 87 of the real file
    assert "the preferred answer is trained" in process.stdout
    assert process.stdout.count("⟦") - 1 >= 5  # the legend has one
    assert "would stop training" not in process.stdout


def test_colour_where_it_is_wanted_and_nowhere_else(recipe: str) -> None:
    """A terminal that has colours gets them, and brackets where NO_COLOR asks for none."""
    coloured = run(recipe, FORCE_COLOR="1", TERM="xterm-256color")
    plain = run(recipe, FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="1")
    assert ";32mIt" in coloured.stdout
    assert "⟦" not in coloured.stdout
    assert "⟦It" in re.sub("\x1b\\[[0-9;]*m", "", plain.stdout)
    assert ";32m" not in plain.stdout


def test_what_would_stop_training_is_shown_and_exits_with_2(recipe: str, tmp_path: Path) -> None:
    process = run(recipe, "--set", "data.max_length_tokens=30", "--html", str(tmp_path / "p.html"))
    assert (process.returncode, process.stderr) == (2, "")
    assert "would stop training" in (tmp_path / "p.html").read_text(encoding="utf-8")
    shown = run(recipe, "--set", "data.max_length_tokens=30")
    assert shown.returncode == 2
    assert "would stop training\n" in shown.stdout
    assert "longer than max_length_tokens 30" in " ".join(shown.stdout.split())  # lines may break
    assert "lengths, in tokens" in shown.stdout


def refused(*options: object) -> str:
    from lorafit.cli.verbs import recipe as verbs

    given = dict(zip(("rows", "places", "split", "html", "tokens"), options[1:], strict=True))
    with pytest.raises(UserError) as refusal:
        verbs.preview(Path(str(options[0])), [], **given)
    return str(refusal.value)


def test_wrong_options_are_refused(recipe: str, tmp_path: Path) -> None:
    taken = tmp_path / "taken.html"
    taken.write_text("mine", encoding="utf-8")
    assert "already exists" in refused(recipe, None, [], "train", taken, False)
    assert taken.read_text(encoding="utf-8") == "mine"
    nowhere = tmp_path / "nowhere" / "p.html"
    assert "no such directory" in refused(recipe, None, [], "train", nowhere, False)
    assert "use train or eval" in refused(recipe, None, [], "test", None, False)


def test_held_out_rows_need_some(make_recipe: Callable[..., object], tmp_path: Path) -> None:
    path = tmp_path / "alone.yaml"
    path.write_text(dump_recipe(make_recipe(data={"eval": None})), encoding="utf-8")
    assert "holds no rows out" in refused(path, None, [], "eval", None, False)
