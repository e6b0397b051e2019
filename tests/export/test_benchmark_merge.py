"""The benchmark of merging runs, at its smallest."""

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.long
def test_a_merge_keeps_within_what_it_may_allocate(tmp_path):
    subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts/benchmark_merge.py"), "--layers", "8",
         "--width", "512", "--vocabulary", "8000", "--shard-mb", "20", "--allow-mb", "60",
         "--json", str(tmp_path / "out.json")], check=True, timeout=280)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["lorafit_peak_mb"] < found["allowed_mb"] < found["model_mb"]
    assert found["lorafit_against_peft"] == 0
