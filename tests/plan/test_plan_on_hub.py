"""A base of the hub is planned for from the first bytes of its files."""

import json
import os
import subprocess
import sys
from pathlib import Path

from lorafit.model.base import TINY
from tests.cli.test_bad_input import RECIPE, REPOSITORY, ROWS
from tests.verify.hub_server import MovingHub

REPO = "somebody/small"


def test_weights_are_not_downloaded(tmp_path: Path) -> None:
    hub = MovingHub()
    files = {file.name: file.read_bytes() for file in TINY.iterdir() if file.is_file()}
    hub.commits[REPO] = [("a" * 40, files)]
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "r.yaml").write_text(RECIPE.replace("base: tiny", f"base: {REPO}"))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_ENDPOINT": hub.url,
                   "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0",
                   "HF_DATASETS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment.pop("LORAFIT_PINS", None)
    done = subprocess.run(
        [sys.executable, "-m", "lorafit", "plan", "r.yaml", "--json"], cwd=tmp_path,
        capture_output=True, text=True, env=environment, timeout=120)
    hub.http.shutdown()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["parameters"] == 3_803_392
    weights = [path for _, path in hub.requests if path.endswith(".safetensors")]
    assert weights
    assert hub.sent_bytes < len(files["model.safetensors"]) / 4
    assert not list((tmp_path / "hub").rglob("*.safetensors"))
