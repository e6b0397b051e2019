"""The same recipe, other processes: a few cells of the table of scripts/prove_layouts.py."""

import json
import os
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
    processes.close()


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
    command = ["lorafit", "train", str(tmp_path / "spread.yaml"), "--strategy", "hsdp"]
    ranks = processes.ranks_by_hand(command, tmp_path, 4, a_machine=2)
    assert [rank.wait(200) for rank in ranks] == [0] * 4, [rank.said() for rank in ranks]
    assert "hsdp" in ranks[0].output()
    train(alone)
    assert largest_difference(adapter_tensors(spread.output.dir),
                              adapter_tensors(alone.output.dir)) < 1e-6


@pytest.mark.long
def test_quick_table(capsys):
    assert prove_layouts.main(["--quick"]) == 0, capsys.readouterr().out


def test_a_stream_is_read_once_on_a_machine(make_recipe, chat_file, tmp_path):
    """Its rows are counted once, and a bad one ends both ranks with what was trained so far."""
    rows = chat_file(520, "stream.jsonl", first=1000)  # 500 are read at a time
    long = {"messages": [{"role": "user", "content": "How much?"},
                         {"role": "assistant", "content": "Very much. " * 200}]}
    rows.write_text(rows.read_text() + json.dumps(long) + "\n")
    recipe = make_recipe("spread", data={"train": str(rows), "streaming": True,
                                         "shuffle_rows": 100, "workers": 1,
                                         "max_length_tokens": 96, "on_long": "error"},
                         training={"steps": 40, "batch_size": 32, "micro_batch_size": 8,
                                   "eval_every": 40, "checkpoint_every": 40})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump()))
    stream = tmp_path / "temporary"
    stream.mkdir()
    run = processes.forks().start(
        ["lorafit", "train", str(tmp_path / "recipe.yaml"), "--num-processes", "2"], tmp_path,
        "spread", environment={"TMPDIR": str(stream)}, ranks=2)
    assert run.wait(200) == 2, run.said()
    assert run.errors().count("error:") == 1, run.errors()
    assert "stream.jsonl:521" in run.errors()
    saved = sorted(path.name for path in (Path(recipe.output.dir) / "checkpoints").glob("step-*"))
    assert saved[-1] > "step-00000000"
    assert not list(stream.glob("lorafit-stream-*"))
