"""The same recipe, other processes: a few cells of the table of scripts/prove_layouts.py."""

import os
import socket
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import adapter_tensors, largest_difference

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

import prove_layouts  # noqa: E402
from layouts.cases import FEATURES, LAYOUTS  # noqa: E402
from layouts.compare import Bench  # noqa: E402
from reliability import processes  # noqa: E402

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")


@pytest.fixture(scope="module", autouse=True)
def _server():
    yield
    if processes._forks is not None:
        processes._forks.close()
        processes._forks = None


def ask(feature: str, layout: str, folder: Path) -> None:
    bench = Bench(next(each for each in FEATURES if each.name == feature), folder / "cell")
    cell = bench.cell(next(each for each in LAYOUTS if each.name == layout), prove_layouts.LIMIT,
                      prove_layouts.LOSS_LIMIT)
    assert cell.problem is None, cell


@pytest.mark.parametrize(("feature", "layout"), [
    ("packed", "FSDP2 2, then DDP 4, then 1"),
    ("nf4 base", "FSDP2, 2, offloaded"),
    ("Qwen3-MoE, LoRA on experts", "FSDP2, 2"),
])
def test_cell(feature, layout, tmp_path):
    ask(feature, layout, tmp_path)


def test_two_groups_of_two_are_one_process(make_recipe, train, tmp_path):
    """HSDP, started by hand as two machines of two devices would start it."""
    sections = {"training": {"batch_size": 8, "learning_rate": 1e-4}}
    spread, alone = make_recipe("spread", **sections), make_recipe("alone", **sections)
    (tmp_path / "spread.yaml").write_text(yaml.safe_dump(spread.model_dump()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [processes.forks().start(
        ["lorafit", "train", str(tmp_path / "spread.yaml"), "--strategy", "hsdp"], tmp_path,
        f"rank-{rank}", environment={
            "RANK": str(rank), "WORLD_SIZE": "4", "LOCAL_RANK": str(rank % 2),
            "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }) for rank in range(4)]
    assert [rank.wait(200) for rank in ranks] == [0] * 4, [rank.said() for rank in ranks]
    assert "hsdp" in ranks[0].output()
    train(alone)
    assert largest_difference(adapter_tensors(spread.output.dir),
                              adapter_tensors(alone.output.dir)) < 1e-6


@pytest.mark.long
def test_quick_table(capsys):
    assert prove_layouts.main(["--quick"]) == 0, capsys.readouterr().out
