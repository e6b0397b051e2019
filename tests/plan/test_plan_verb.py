"""`lorafit plan` as a process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_bad_input import RECIPE, REPOSITORY, ROWS

# Whoever imports torch fails.
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from lorafit.cli.main import main; main()"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "odd.jsonl").write_text(ROWS + '{"prompt": 1}\n')
    return tmp_path


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "plan", *arguments], cwd=folder, text=True,
        capture_output=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "LORAFIT_CACHE": str(folder / "cache")})


def test_all_of_it_is_told_without_torch(folder):
    done = run(folder, "r.yaml")
    assert done.returncode == 0, done.stderr
    said = {line.split()[0] for line in done.stdout.splitlines() if line[:1].isalpha()}
    assert {"base", "machine", "trained", "rows", "steps", "capacity"} <= said
    assert not (folder / "out").exists()


def test_json_for_scripts(folder):
    done = run(folder, "r.yaml", "--json", "--set", "adapter.rank=2", "--gpu-memory", "24GB",
               "--devices", "2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["trained"]["parameters"] == 35_840
    assert found["machine"] == {"device": "GPU", "kind": "cuda", "devices": 2,
                                "memory_bytes": 24 * 10**9}
    assert found["tokens"]["steps"] == 1
    assert found["train"]["is_exact"]


def test_formulas_are_printed_on_demand(folder):
    assert "2 bits x trained parameters" in run(folder, "r.yaml", "--sources").stdout
    assert "2 bits x trained parameters" not in run(folder, "r.yaml").stdout


@pytest.mark.parametrize(("arguments", "said"), [
    (["--set", "model.base=./nothing"], "no such base model"),
    (["--set", "adapter.rank=none"], "adapter.rank"),
    (["--set", "data.train=nothing.jsonl"], "nothing.jsonl"),
    (["--set", "data.train=odd.jsonl"], "odd.jsonl:3"),
    (["--gpu-memory", "much"], "'much' is no size"),
    (["--gpu", "A100"], "add --gpu-memory"),
    (["--gpu-memory", "80GB", "--calibrate"], "only this machine can be measured"),
    (["--set", "model.quantization=int8", "--calibrate"], "are not measured"),
    (["--set", "adapter.target_modules=[q_prj]"], "q_prj matches no layer"),
])
def test_bad_input(arguments, said, folder):
    done = run(folder, "r.yaml", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_configuration_that_cannot_be_sized(folder):
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text(json.dumps(
        {"model_type": "opt", "hidden_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "vocab_size": 320}))
    done = run(folder, "r.yaml", "--set", "model.base=base")
    assert done.returncode == 2
    assert "Certain is: its embeddings have 20,480 parameters" in done.stderr


EIGHT_BILLION = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
                 "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                 "vocab_size": 128256, "max_position_embeddings": 8192,
                 "tie_word_embeddings": False}


@pytest.fixture
def large(folder: Path) -> Path:
    """A base of eight billion parameters, of which nothing is there but what it is."""
    from lorafit.model.base import TINY

    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text(json.dumps(EIGHT_BILLION))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / "base" / name).write_bytes((TINY / name).read_bytes())
    return folder


def test_what_will_not_fit_says_so_and_what_would(large):
    on = ["r.yaml", "--set", "model.base=base", "--gpu-memory"]
    done = run(large, *on, "10GB")
    assert done.returncode == 1
    assert "DOES NOT FIT" in done.stdout
    found = json.loads(run(large, *on, "10GB", "--json").stdout)["memory"]
    by_name = {each["name"]: each["fits"] for each in found["alternatives"]}
    assert by_name == {"float32": False, "bfloat16": False, "int8": False, "nf4": True,
                       "full fine-tuning in bfloat16": False}
    assert found["smallest_machine"].startswith("a GPU of 24 GB")
    # And so it is, when it is asked for:
    assert run(large, *on, "24GB").returncode == 0
    assert run(large, *on, "10GB", "--set", "model.quantization=nf4").returncode == 0


def test_what_is_told_to_fit_fits_and_one_more_does_not(large):
    def memory(rows: int, tokens: int) -> "dict[str, object]":
        word = "yes " * tokens
        (large / "rows.jsonl").write_text("".join(
            json.dumps({"text": f"{i} {word}"}) + "\n" for i in range(rows)))
        done = run(large, "r.yaml", "--json", "--set", "model.base=base", "--gpu-memory", "24GB",
                   "--set", f"training.batch_size={rows}", "--set",
                   f"training.micro_batch_size={rows}", "--set", "data.max_length_tokens=8000",
                   "--set", "data.checks.duplicates=allow",
                   "--set", "training.activation_checkpointing=none")
        return json.loads(done.stdout)["memory"]

    most = memory(1, 100)["largest_micro_batch"]
    assert isinstance(most, int)
    assert 2 < most < 100
    assert memory(most, 100)["fits"]
    assert not memory(most + 1, 100)["fits"]


def test_several_devices_share_a_base_that_one_cannot_hold(large):
    on = ["r.yaml", "--set", "model.base=base", "--json", "--gpu-memory", "12GB", "--devices"]
    alone, four = (json.loads(run(large, *on, devices).stdout)["memory"] for devices in ("1", "4"))
    assert not alone["fits"]
    assert four["fits"]
    assert four["strategy"]["value"] == "fsdp"
    assert four["by_kind_bytes"]["base"] < 0.4 * alone["by_kind_bytes"]["base"]
    assert four["by_kind_bytes"]["optimizer"] == alone["by_kind_bytes"]["optimizer"] // 4


def test_a_gpu_with_a_data_sheet_has_a_time_and_a_price(large):
    on = ["r.yaml", "--set", "model.base=base", "--json", "--gpu-memory", "80GB", "--gpu", "A100",
          "--price-per-hour", "3.6"]
    found = json.loads(run(large, *on).stdout)["time"]
    low, high = found["total_s"]
    assert 0 < low < high
    assert found["price"] == pytest.approx([low / 1000, high / 1000])
    assert "data sheet" in found["source"]
