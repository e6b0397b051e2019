"""Hostile artifacts: nothing of them runs, nothing is written elsewhere, no socket is opened."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_bad_input import RECIPE, REPOSITORY

SCRIPTS = REPOSITORY / "scripts"


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("reliability.rows.hostile")


def asked(hostile: Any, work: Path, times: int) -> Any:
    row = importlib.import_module("reliability.row")
    return hostile.ask(row.Setting(work), times)


def test_a_sample_of_every_kind_is_refused(hostile: Any, tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    # Those that are refused before torch is loaded; the others take seconds each.
    quick = [artifact for artifact in hostile.ARTIFACTS if artifact.kind in (
        "pickle", "traversal", "header", "auto_map", "private key", "kernel", "yaml", "name")]
    monkeypatch.setattr(hostile, "ARTIFACTS", quick)
    tally = asked(hostile, tmp_path, hostile.ROW.times_in_tests)
    assert not tally.problems
    assert tally.passed == tally.asked == hostile.ROW.times_in_tests


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_all_of_them_are_refused(hostile: Any, tmp_path: Path) -> None:
    tally = asked(hostile, tmp_path, hostile.ROW.times)
    assert not tally.problems
    assert tally.passed >= 50


def test_what_an_artifact_does_would_be_seen(hostile: Any, tmp_path: Path) -> None:
    """The audit finds code, files, sockets and programs where there are some."""
    artifact, running = (importlib.import_module(f"reliability.hostile.{name}")
                         for name in ("artifact", "running"))
    evil, log = tmp_path / "evil", tmp_path / "log"
    evil.mkdir()
    (evil / "module.py").write_text("import os, socket\nsocket.socket()\nopen('x', 'w')\n"
                                    "os.system('true')\n")
    subprocess.run([sys.executable, "-c", "import module"], cwd=tmp_path, check=True, env={
        **os.environ, "PYTHONPATH": f"{running.AUDIT}:{evil}", "AUDIT_LOG": str(log),
        "AUDIT_ARTIFACT": str(evil)})
    seen = running.Seen(0, "", "", log.read_text().splitlines())
    assert all(seen.of_kind(kind) for kind in ("code", "socket", "program"))
    assert str(tmp_path / "x") in seen.written_outside(evil)
    canary = tmp_path / "canary"
    loading = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    subprocess.run([sys.executable, "-c", loading], input=artifact.pickled(canary), check=True)
    assert canary.exists()


VERBS = ["check r.yaml", "preview r.yaml", "train r.yaml", "eval out", "merge out",
         "export-adapter out", "generate out --prompt hi --max-new-tokens 2", "inspect out",
         "verify out/merged --against out", "targets tiny", "serve out --dry-run"]
DRIVER = """
import sys
from lorafit.cli import main
for verb in VERBS:
    sys.argv = ["lorafit", *verb.split()]
    code = main._run()
    assert code == 0, (verb, code)
"""


def test_no_socket_is_opened_for_local_files(hostile: Any, tmp_path: Path) -> None:
    """Every verb in one process and what it starts; also loader workers, and a token at hand."""
    running = importlib.import_module("reliability.hostile.running")
    rows = "".join(json.dumps({"prompt": f"{n}+{n}?", "completion": str(2 * n)}) + "\n"
                   for n in range(40))
    (tmp_path / "rows.jsonl").write_text(rows)
    recipe = RECIPE.replace("  train: rows.jsonl\n", "  train: rows.jsonl\n  eval_fraction: 0.2\n")
    (tmp_path / "r.yaml").write_text(recipe.replace("base: tiny", "base: tiny\n  dtype: float32"))
    log = tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": f"{running.AUDIT}:{REPOSITORY}",
                   "AUDIT_LOG": str(log), "OMP_NUM_THREADS": "1", "HF_TOKEN": "hf_" + "q" * 34,
                   "LORAFIT_CACHE": str(tmp_path / "cache")}
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # nothing but lorafit switches it off
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", DRIVER.replace("VERBS", repr(VERBS))],
                          cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    events = running.Seen(0, "", "", log.read_text().splitlines())
    assert events.of_kind("write")
    assert not events.of_kind("socket")
    secret = environment["HF_TOKEN"].encode()
    assert not [file for file in (tmp_path / "out").rglob("*")
                if file.is_file() and secret in file.read_bytes()]
    assert secret.decode() not in done.stdout + done.stderr
