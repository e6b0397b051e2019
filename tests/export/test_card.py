"""The model card: what the hub reads of it, and what it must not tell."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from lorafit.export.adapter import export_adapter
from lorafit.export.certify import certify_export, certify_merge
from lorafit.export.formats import format_named
from lorafit.export.merge import merge
from lorafit.model.base import TINY
from lorafit.model.trained import open_adapter


@pytest.fixture(scope="module")
def artifacts(run_of: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An exported adapter and a merged model with their papers."""
    source = open_adapter(run_of("plain"))
    folder = tmp_path_factory.mktemp("artifacts")
    certify_export(source, export_adapter(source, folder / "adapter"), "peft")
    certify_merge(source, merge(source, folder / "merged"))
    return folder / "adapter", folder / "merged"


def test_the_front_matter_is_the_hubs(artifacts):
    for artifact, library in zip(artifacts, ("peft", "transformers"), strict=True):
        text = (artifact / "README.md").read_text(encoding="utf-8")
        data = ModelCard(text).data.to_dict()
        assert data["library_name"] == library
        assert "lorafit" in data["tags"]
        assert "license" not in data  # not known, so not claimed
        assert "language" not in data
        assert "base_model" not in data  # tiny is no model of the hub
        assert "put it into `license:`" in text


def test_a_hub_base_its_licence_and_hub_data_are_named(run_of, tmp_path):
    from dataclasses import replace

    from lorafit.export import card as cards

    base = Path(shutil.copytree(TINY, tmp_path / "base"))
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: open-rail\n---\n# base\n")
    source = open_adapter(run_of("plain"))
    named = replace(source, model=source.model.model_copy(update={"base": str(base)}))
    assert cards.base_licence(named.model) == {"license": "other", "license_name": "open-rail"}
    recipe = source.recipe.model_copy(update={"data": source.recipe.data.model_copy(
        update={"train": "openai/gsm8k"})})
    on_hub = replace(source, recipe=recipe,
                     model=source.model.model_copy(update={"base": "org/model"}))
    for form, relation, library in ((None, "merge", "transformers"), ("peft", "adapter", "peft"),
                                    ("mlx", "adapter", "mlx")):
        named_form = None if form is None else format_named(form)
        data = yaml.safe_load(cards._front_matter(on_hub, named_form, {"license": "mit"}))
        assert data["library_name"] == library
        assert data["base_model"] == "org/model"
        assert data["base_model_relation"] == relation
        assert data["datasets"] == ["openai/gsm8k"]
        assert data["license"] == "mit"


def test_the_card_has_the_runs_figures_and_none_of_its_rows_or_paths(artifacts, run_of):
    run = run_of("plain")
    record = json.loads((run / "record.json").read_text())
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for artifact in artifacts:
        text = (artifact / "README.md").read_text(encoding="utf-8")
        last = next(line["loss"] for line in reversed(losses) if "loss" in line)
        assert f"{last:.4f}" in text
        assert f"{record['train']['supervised_tokens']:,}" in text
        assert record["train"]["fingerprint"][:16] in text
        assert "rank 4" in text
        assert str(run.parent) not in text
        assert "How much" not in text
        assert "plain.jsonl" not in text
    assert "0 (bit-equal)" in (artifacts[0] / "README.md").read_text()


def test_the_code_in_the_card_of_an_adapter_loads_it(artifacts, plain):
    """With the base's place for its name, as it is on no hub."""
    import torch

    text = (artifacts[0] / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    code = code.replace('"tiny"', repr(str(TINY))).replace('"adapter"', repr(str(artifacts[0])))
    code = code.replace('dtype="auto", device_map="auto"', "dtype='float32'")
    names: dict[str, Any] = {}
    exec(code, names)
    with torch.inference_mode():
        logits = names["model"].eval()(input_ids=torch.arange(5, 60)[None]).logits
    assert torch.equal(logits, plain.logits(TINY, artifacts[0]))


def test_a_cut_adapter_is_not_called_the_runs_and_commands_name_no_place(run_of, tmp_path):
    source = open_adapter(run_of("plain"))
    result = export_adapter(source, tmp_path / "cut", format_named("vllm"), max_rank=2)
    certify_export(source, result, "vllm", result.command)
    measured = json.loads((tmp_path / "cut" / "lorafit_proof.json").read_text())["measured"]
    after, before = measured
    assert after == "the base with the run's adapter after its ranks were cut"
    assert measured[after]["relative_rms"] < 1e-4 < measured[before]["relative_rms"]
    text = (tmp_path / "cut" / "README.md").read_text()
    assert "vllm serve tiny --enable-lora" in text
    assert str(tmp_path) not in text
    assert str(TINY) not in text
