"""A base of the hub is one commit, however its branch moves: in a run, and in all that follows."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lorafit import pins
from lorafit.data.sources import hub as hub_sources
from lorafit.data.sources.locations import Location
from lorafit.model.base import TINY
from tests.cli.test_bad_input import RECIPE, REPOSITORY, ROWS
from tests.verify.hub_server import MovingHub

FIRST, SECOND = "a" * 40, "b" * 40
REPO = "somebody/small"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[MovingHub]:
    """The tiny base, and a second commit that has another configuration and other weights."""
    fake = MovingHub()
    files = {file.name: file.read_bytes() for file in TINY.iterdir() if file.is_file()}
    other = tmp_path / "other.safetensors"
    save_file({name: tensor * 0 for name, tensor in load_file(TINY / "model.safetensors").items()},
              other, metadata={"format": "pt"})
    config = json.loads(files["config.json"])
    config["rms_norm_eps"] = 0.5
    fake.commits[REPO] = [(FIRST, files), (SECOND, {
        **files, "model.safetensors": other.read_bytes(),
        "config.json": json.dumps(config).encode()})]
    yield fake
    fake.http.shutdown()


def run(hub: MovingHub, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1",
                   "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "0",
                   "HF_DATASETS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment.pop("LORAFIT_PINS", None)
    done = subprocess.run([sys.executable, "-m", "lorafit", *arguments], cwd=folder,
                          capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def asked_revisions(hub: MovingHub) -> set[str]:
    return {path.split("/")[4] for _, path in hub.requests if "/resolve/" in path}


def test_configuration_tokenizer_and_weights_are_of_the_commit_that_the_record_names(
        hub: MovingHub, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "r.yaml").write_text(RECIPE.replace("base: tiny", f"base: {REPO}"))
    run(hub, tmp_path, "train", "r.yaml")
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["base_commit"] == FIRST
    assert asked_revisions(hub) == {FIRST}
    assert {path for _, path in hub.requests if "/api/" in path and "main" in path} == {
        f"/api/models/{REPO}/revision/main"}
    # Later, with an empty cache and a branch that stands at the second commit:
    hub.requests.clear()
    (tmp_path / "hub").rename(tmp_path / "old-hub")
    run(hub, tmp_path, "merge", "out", "--plan")
    assert asked_revisions(hub) == {FIRST}
    assert any(path.endswith("model.safetensors") for _, path in hub.requests)


@pytest.mark.long
def test_a_resumed_run_keeps_the_commit(hub: MovingHub, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "r.yaml").write_text(RECIPE.replace("base: tiny", f"base: {REPO}"))
    run(hub, tmp_path, "train", "r.yaml")
    (tmp_path / "hub").rename(tmp_path / "old-hub")
    run(hub, tmp_path, "train", "r.yaml", "--resume", "--set", "training.steps=2")
    assert asked_revisions(hub) == {FIRST}
    assert json.loads((tmp_path / "out" / "record.json").read_text())["base_commit"] == FIRST


def test_a_data_set_keeps_the_commit_that_was_found_first(
        hub: MovingHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.url)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("LORAFIT_PINS", "{}")
    place = Location(REPO)
    assert [hub_sources._revision(place) for _ in range(3)] == [FIRST] * 3
    assert pins.commits() == {f"dataset {REPO}@main": FIRST}
    pins.forget()
    assert hub_sources._revision(place) == SECOND


def test_pins_are_told_to_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFIT_PINS", "{}")
    pins.pin("model", "a/b", None, FIRST)
    code = "from lorafit import pins; print(pins.pinned('model', 'a/b', 'main'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=True)
    assert done.stdout.strip() == FIRST
