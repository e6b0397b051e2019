"""The verbs as a person types them: real processes, one after the other, on one run."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorafit.data import cache
from lorafit.recipe.loading import dump_recipe, load_recipe
from lorafit.run_dir import RunDir


def lorafit(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "lorafit", *arguments], capture_output=True,
                          text=True, timeout=240, cwd=cwd, env=os.environ.copy())


def said(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_from_starter_recipe_to_served_files(chat_file, tmp_path):
    """init → check → train → generate → eval → merge → export-adapter, each as printed."""
    data = chat_file(12)
    said(lorafit("init", "--data", str(data), "--model", "tiny", "-o", "recipe.yaml",
                 cwd=tmp_path))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.data.eval_fraction == 0.05
    small = ["--set", "training.epochs=null", "--set", "training.steps=2",
             "--set", "training.batch_size=4"]
    checked = said(lorafit("check", "recipe.yaml", *small, cwd=tmp_path))
    assert "the recipe is fine" in checked
    assert not (tmp_path / "runs").exists()
    trained = said(lorafit("train", "recipe.yaml", *small, cwd=tmp_path))
    assert "step 2/2" in trained
    trainable = next(line for line in checked.splitlines() if line.startswith("trained"))
    assert trainable in trained
    run = recipe.output.dir
    assert f"{run}/adapter" in trained
    both = said(lorafit("generate", run, "-p", "How much is 1 and 2?", "--max-new-tokens", "8",
                        cwd=tmp_path))
    assert "base" in both
    assert "adapter" in both
    alone = said(lorafit("generate", run, "-p", "Hi", "--with", "base", "--max-new-tokens", "8",
                         cwd=tmp_path))
    again = said(lorafit("generate", run, "-p", "Hi", "--with", "base", "--max-new-tokens", "8",
                         cwd=tmp_path))
    assert alone == again
    assert "exact match" in said(lorafit("eval", run, cwd=tmp_path))
    merged = said(lorafit("merge", run, cwd=tmp_path))
    assert "top-1 agreement" in merged
    exported = said(lorafit("export-adapter", run, cwd=tmp_path))
    assert "bit-equal" in exported
    assert (tmp_path / run / "merged" / "model.safetensors").exists()
    assert (tmp_path / run / "exported" / "adapter_model.safetensors").exists()
    refused = lorafit("merge", run, cwd=tmp_path)
    assert refused.returncode == 2
    assert "already exists" in refused.stderr


def test_progress_is_a_live_bar_on_a_terminal(make_recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(make_recipe().model_dump()))
    main, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "lorafit", "train", str(path)], stdout=other, stderr=other,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "110"})
    os.close(other)
    shown = b""
    while True:
        try:
            block = os.read(main, 65536)
        except OSError:
            break
        if not block:
            break
        shown += block
    assert process.wait() == 0
    text = shown.decode(errors="replace")
    assert "4/4" in text
    assert "tok/s" in text
    assert "\x1b[" in text


def test_python_dash_m_prints_the_version():
    import lorafit as package

    assert said(lorafit("--version")).split() == ["lorafit", package.__version__]


@pytest.mark.parametrize("verb", [
    "train", "check", "bench", "preview", "targets", "init", "schema", "generate", "eval",
    "inspect", "combine", "merge", "serve", "chat", "export-adapter", "cache"])
def test_every_verb_has_help(verb):
    assert "Usage" in said(lorafit(verb, "--help"))


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.long)])
def test_no_encoding_stops_a_verb(
    make_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    chat_file: Callable[..., Path], encoding: str,
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    path = tmp_path / "r.yaml"
    path.write_text(dump_recipe(make_recipe(data={"train": str(chat_file(12, "größe-日.jsonl"))},
                                            training={"steps": 1})), encoding="utf-8")
    for verb in ("check", "preview", "train"):
        done = subprocess.run([sys.executable, "-m", "lorafit", verb, str(path)], timeout=240,
                              capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert b"-\\u65e5.jsonl" in done.stdout


def test_a_run_goes_on_when_nobody_reads_what_it_prints(
    make_recipe: Callable[..., Any], tmp_path: Path,
) -> None:
    recipe = make_recipe(training={"steps": 2})
    path = tmp_path / "r.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    with subprocess.Popen([sys.executable, "-m", "lorafit", "train", str(path)],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"base")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert RunDir(Path(recipe.output.dir)).result.is_file()


def test_a_full_disk_under_the_output_is_said_once_with_code_3(
    make_recipe: Callable[..., Any], tmp_path: Path,
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(dump_recipe(make_recipe()), encoding="utf-8")
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "lorafit", "check", str(path)], stdout=full,
                              stderr=subprocess.PIPE, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (
        3, "error: standard output: No space left on device\n")


def test_the_schema_accepts_what_the_loader_accepts(make_recipe):
    schema = json.loads(said(lorafit("schema")))
    assert schema["required"] == ["model", "data", "output"]
    assert schema["additionalProperties"] is False


def test_the_cache_is_listed_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat_file: Callable[..., Path],
) -> None:
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({
        "model": {"base": "tiny"}, "output": {"dir": str(tmp_path / "run")},
        "data": {"train": str(chat_file()), "eval": str(chat_file(3, "eval.jsonl", first=90))},
    }), encoding="utf-8")
    assert "0 entries" in said(lorafit("cache"))
    said(lorafit("check", str(recipe)))
    listed = said(lorafit("cache"))
    assert "2 entries" in listed
    keys = [entry.key for entry in cache.entries()]
    assert all(key[:12] in listed for key in keys)
    assert "deleted   1 entry" in said(lorafit("cache", "--delete", keys[0][:8]))
    assert [entry.key for entry in cache.entries()] == keys[1:]
    assert "deleted   0 entries" in said(lorafit("cache", "--unused-days", "1"))
    assert "deleted   1 entry" in said(lorafit("cache", "--delete-all"))
    assert cache.entries() == []
    refused = lorafit("cache", "--delete", "zz")
    assert refused.returncode == 2
    assert "no entry begins with 'zz'" in refused.stderr
