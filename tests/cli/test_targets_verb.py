"""`lorafit targets`: what a model offers, what it costs, and what a recipe makes of it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorafit.cli import main as cli
from lorafit.recipe.schema import Recipe

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lorafit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
            tmp_path: Path) -> Run:
    """The command in this process: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lorafit", *arguments])
        code = cli._run()
        out, err = capsys.readouterr()
        return code, out, err

    return run


def recipe(folder: Path, **adapter: Any) -> str:
    (folder / "rows.jsonl").write_text('{"text": "a"}\n')
    (folder / "r.yaml").write_text(yaml.safe_dump({
        "model": {"base": "tiny"}, "adapter": adapter, "data": {"train": "rows.jsonl"},
        "output": {"dir": "out"}}))
    return "r.yaml"


def kinds(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {kind["kind"]: kind for kind in found["kinds"]}


def test_a_process_prints_the_model_its_layers_and_lines_for_a_recipe():
    done = subprocess.run([sys.executable, "-m", "lorafit", "targets", "tiny", "--rank", "8"],
                          capture_output=True, text=True, timeout=240, check=True)
    assert "3,803,392 parameters, 4 decoder layers" in done.stdout
    assert "trained   143,360 parameters by lora" in done.stdout
    assert "self_attn.q_proj" in done.stdout
    assert "head, tied" in done.stdout
    lines = [line for line in done.stdout.splitlines() if "target_modules: [" in line]
    assert "[k_proj, o_proj, q_proj, v_proj]  # attention only: 57,344" in lines[0]
    assert "[down_proj, gate_proj, up_proj]  # MLP only: 86,016" in lines[1]
    assert len(lines) == 3
    for line in lines:  # each can be pasted
        words = yaml.safe_load(line)["target_modules"]
        Recipe.model_validate({"model": {"base": "tiny"}, "adapter": {"target_modules": words},
                               "data": {"train": "rows.jsonl"}, "output": {"dir": "out"}})


def test_json_holds_the_same_for_scripts(lorafit):
    code, out, _ = lorafit("targets", "tiny", "--rank", "4", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["parameters"] == 3_803_392
    assert found["trained_parameters"] == sum(
        kind["lora_parameters"] for kind in found["kinds"] if kind["adapted"])
    assert found["trained_bytes"] == 16 * found["trained_parameters"]
    down = kinds(found)["mlp.down_proj"]
    assert (down["shape"], down["weights"], down["lora_parameters"]) == ([256, 640], 4,
                                                                         4 * 4 * (256 + 640))
    assert sum(kind["parameters"] for kind in found["kinds"] if kind["part"] != "head") \
        + found["norm_parameters"] + found["uncounted"] == found["parameters"]


@pytest.mark.parametrize("place", ["r.yaml", "tiny --recipe r.yaml"])
def test_a_recipe_marks_what_it_would_adapt(lorafit, tmp_path, place):
    recipe(tmp_path, rank=4, target_modules=["q_proj"], layers=[0, 1],
           modules_to_save=["lm_head"])
    code, out, err = lorafit("targets", *place.split(), "--json")
    assert code == 0, err
    found = json.loads(out)
    marked = {name: kind["adapted"] for name, kind in kinds(found).items() if kind["adapted"]}
    assert marked == {"self_attn.q_proj": 2}
    # Untied by training it, the head is 4096 × 256 in full.
    assert found["trained_parameters"] == 2 * 4 * (256 + 256) + 4096 * 256


def test_the_rank_and_any_key_can_be_overridden(lorafit, tmp_path):
    name = recipe(tmp_path, rank=4, target_modules=["q_proj"])
    _, plain, _ = lorafit("targets", name, "--json")
    _, ranked, _ = lorafit("targets", name, "--rank", "8", "--json")
    _, other, _ = lorafit("targets", name, "--set", "adapter.target_modules=[v_proj]", "--json")
    assert json.loads(ranked)["trained_parameters"] == 2 * json.loads(plain)["trained_parameters"]
    assert kinds(json.loads(other))["self_attn.v_proj"]["adapted"] == 4


def test_a_method_without_ranks_is_counted_as_it_is(lorafit, tmp_path):
    name = recipe(tmp_path, method="ia3")
    code, out, err = lorafit("targets", name, "--json")
    assert code == 0, err
    found = json.loads(out)
    # A factor for each output of attention, and for each input of the MLP's layers.
    assert found["trained_parameters"] == 4 * (256 + 128 + 128 + 256 + 256 + 256 + 640)


def test_what_a_recipe_means_beside_the_decoder_is_said_here_and_by_check(lorafit, tmp_path):
    name = recipe(tmp_path, target_modules=".*")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    remark = "the expression '.*' also means model.embed_tokens, lm_head"
    code, out, _ = lorafit("targets", name)
    assert code == 0
    assert remark in out
    code, out, err = lorafit("check", name, "--set", "training.steps=1",
                             "--set", "training.batch_size=1")
    assert code == 0, err
    assert remark in out


@pytest.mark.parametrize("arguments", [
    ["gone.yaml"], ["./gone"], ["nobody/nothing"], [""], ["tiny", "--rank", "4000"],
    ["tiny", "--set", "adapter.rank=2"], ["r.yaml", "--recipe", "r.yaml"],
    ["r.yaml", "--set", "adapter.target_modules=[qq_proj]"],
    ["r.yaml", "--set", "adapter.router=true"], ["an-encoder"], ["."],
])
def test_bad_input_is_refused_with_a_remedy(lorafit, tmp_path, arguments):
    recipe(tmp_path)
    (tmp_path / "an-encoder").mkdir()
    (tmp_path / "an-encoder" / "config.json").write_text('{"model_type": "t5"}')
    code, out, err = lorafit("targets", *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) >= 2
