"""The proof with the programs themselves: that it asks what it says, and that it would notice."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
SCRIPTS = REPOSITORY / "scripts"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_answers_are_the_trained_models_and_a_wrong_adapter_shows(
        run_of: Callable[[str], Path], tmp_path: Path, scripts: None,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """peft's driver, run by this Python, on a right adapter, one of another scale, and merged."""
    import torch
    from engines.cases import greedy
    from engines.report import cell, page

    from lorafit.export.adapter import export_adapter
    from lorafit.export.merge import merge
    from lorafit.model.adapters.files import load_adapter
    from lorafit.model.base import TINY, load_base
    from lorafit.model.trained import full_precision, open_adapter

    source = open_adapter(run_of("rslora"))
    export_adapter(source, tmp_path / "right")
    merge(source, tmp_path / "merged", "float32")
    shutil.copytree(tmp_path / "right", tmp_path / "wrong")
    config = tmp_path / "wrong" / "adapter_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"lora_alpha": 4 * values["lora_alpha"]}))
    prompts = [[5, 60 + n, 200 + 7 * n, 31] for n in range(4)]
    model = load_adapter(load_base(full_precision(source.model), "float32", "eager",
                                   torch.device("cpu")), source.directory)
    expected = greedy(model, prompts, 6)
    given, out = tmp_path / "in.json", tmp_path / "out.json"
    given.write_text(json.dumps({
        "base": str(TINY), "prompts": prompts, "new_tokens": 6, "dtype": "float32",
        "adapters": {name: str(tmp_path / name) for name in ("right", "wrong")},
        "merged": {"right": str(tmp_path / "merged")}}))
    monkeypatch.setattr(sys, "argv", ["", str(given), str(out)])
    runpy.run_path(str(SCRIPTS / "engines" / "drivers" / "peft_generate.py"), run_name="__main__")
    found = json.loads(out.read_text())
    cells = {name: cell(found["answers"][name], expected, found["base"])
             for name in ("right", "wrong", "merged:right")}
    assert cells["right"].equal == cells["merged:right"].equal == cells["right"].of == 4
    assert cells["wrong"].equal < 4
    assert cells["right"].moved > 0
    text = page({"peft:adapters": "peft"}, {"tiny": "Tiny"}, ["right", "wrong"],
                {("tiny", "right", "peft:adapters"): cells["right"],
                 ("tiny", "wrong", "peft:adapters"): cells["wrong"]}, ["how"])
    assert "| right | 4/4 |" in text
    assert f"| wrong | **{cells['wrong'].equal}/4** |" in text


def test_every_engine_is_whole(scripts: None) -> None:
    from engines import ENGINES
    from engines.engine import DRIVERS

    from lorafit.export.formats import FORMATS

    for name, engine in ENGINES.items():
        assert engine.name == name
        assert engine.format in (None, *FORMATS)
        assert bool(engine.why_not) != bool(engine.environment)
        assert not engine.environment or (DRIVERS / engine.driver).is_file()


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("engine", ["peft", "mlx", "vllm"])
def test_the_programs_answer_as_what_was_trained(tmp_path: Path, engine: str) -> None:
    """LORAFIT_ENGINES keeps the environments, which are gigabytes, for the next run."""
    work = Path(os.environ.get("LORAFIT_ENGINES", tmp_path / "work"))
    shutil.rmtree(work / "runs", ignore_errors=True)

    def prove(*more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, str(SCRIPTS / "prove_engines.py"), "--work", str(work), "--engines",
             engine, "--bases", "llama-tied", *more], capture_output=True, text=True)

    built = prove("--build-only")
    if built.returncode:
        pytest.skip(f"its environment cannot be built here: {built.stdout}")
    done = prove("--kinds", "LoRA,rsLoRA,ranks and alphas by layer", "--json",
                 str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    cells: list[dict[str, Any]] = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert len(cells) >= 3
    assert all(cell["equal"] == cell["of"] >= 20 and cell["moved"] > 0 for cell in cells)
