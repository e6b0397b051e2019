"""scripts/benchmark_growth.py at its smallest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
SCRIPT = REPOSITORY / "scripts" / "benchmark_growth.py"
SMALLEST = ["--gpu-shape", "tiny", "--tokens", "48", "--length", "24", "--rank", "2",
            "--rounds", "2", "--dtype", "float32"]


def growth(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *SMALLEST, *arguments], text=True,
                          capture_output=True, timeout=240,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY)})


@pytest.mark.long
def test_two_points_of_an_axis(tmp_path: Path) -> None:
    done = growth("--no-plot", "--ranks", "2,4", "--lengths", "24", "--shares", "0.6", "--layers",
                  "2", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "growth.json").read_text(encoding="utf-8"))
    points = {(point["axis"], point["value"]): point for point in found["points"]}
    assert list(points) == [("rank", 2), ("rank", 4), ("length", 24), ("supervised", 0.6),
                            ("layers", 2)]
    trained = [points["rank", rank]["sides"]["lorafit"]["trained_parameters"] for rank in (2, 4)]
    assert trained[1] == 2 * trained[0]
    # the middle is measured once
    assert points["rank", 2]["sides"] == points["layers", 2]["sides"]
    for point in found["points"]:
        assert set(point["sides"]) == {"floor", "lorafit", "peft"}
        assert all(side["tokens_per_s"] > 0 for side in point["sides"].values())
    assert not (tmp_path / "growth.svg").exists()


def test_a_wrong_request_is_said(tmp_path: Path) -> None:
    done = growth("--no-plot", "--ranks", "0", "--output", str(tmp_path))
    assert done.returncode == 2
    assert "--rank: must be at least 1" in done.stderr
    assert not (tmp_path / "growth.json").exists()
