"""`lorafit verify ARTIFACT --against RUN` on real artifacts, sound and spoilt."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorafit.errors import MachineError, UserError
from lorafit.export import formats
from lorafit.export.formats.format import Format
from lorafit.export.proof import read_proof
from lorafit.model.base import TINY
from lorafit.model.trained import open_adapter
from lorafit.verify.against import Asked, record, verify_against
from lorafit.verify.artifact import open_artifact
from lorafit.verify.figures import ROUNDED
from tests.verify.conftest import trained

SHORT = Asked(prompts=4, tokens=8)


def verified(artifact: Path, run: Path, asked: Asked = SHORT):
    return verify_against(open_artifact(artifact), open_adapter(run), asked)


def figures(found, compared=0):
    return {figure.name: figure for figure in found.compared[compared].figures}


def test_an_exported_adapter_is_the_trainers_model_to_the_bit(run, exported):
    found = verified(exported, run)
    assert found.passed
    assert all(figure.passed for figure in figures(found).values())
    assert figures(found)["relative difference of the logits"].value == "0 (bit-equal)"
    assert "4 of 4 equal" in figures(found)["greedy answers, token ids"].value


def test_a_merged_model_keeps_within_the_rounding_of_its_weights(run, merged):
    found = verified(merged, run)
    assert found.passed
    facts = found.compared[0].facts
    assert 1e-4 < facts["relative_rms"] < ROUNDED["bfloat16"].relative
    assert facts["mean_kl"] < ROUNDED["bfloat16"].kl / 3
    assert facts["mean_logprob_difference"] < ROUNDED["bfloat16"].logprob / 3
    again = figures(found, 2)["relative difference, measured again"]
    assert again.passed  # as when it was merged


def test_the_figures_are_those_of_an_independent_computation(run, merged):
    """Loss, KL and greedy answers by transformers and peft alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found = verified(merged, run)
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    reference = PeftModel.from_pretrained(base, run / "adapter").eval()
    other = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    loss, kl, count, positions = 0.0, 0.0, 0, 0
    with torch.inference_mode():
        for line in (run / "held_out.jsonl").read_text().splitlines():
            row = json.loads(line)
            ids = torch.tensor([row["token_ids"]])
            p, q = (model(input_ids=ids).logits[0].double().log_softmax(-1)
                    for model in (reference, other))
            kl += float((p.exp() * (p - q)).sum())
            positions += ids.shape[1]
            for at in range(1, ids.shape[1]):
                if row["supervised"][at]:
                    loss -= float(q[at - 1, ids[0, at]])
                    count += 1
    facts = found.compared[0].facts
    assert facts["held_out_loss"] == pytest.approx(loss / count, rel=1e-4)
    assert facts["mean_kl"] == pytest.approx(kl / positions, rel=2e-2)


def test_a_scaled_adapter_fails_and_a_tolerance_is_the_users_verdict(run, exported, copy):
    spoilt = copy(exported)
    weights = spoilt / "adapter_model.safetensors"
    save_file({name: tensor * 1.02 for name, tensor in load_file(weights).items()}, weights)
    (spoilt / "lorafit_proof.json").unlink()
    found = verified(spoilt, run)
    assert not found.passed
    assert "--tolerance" in found.remedy
    relative = found.compared[0].facts["relative_rms"]
    assert verified(spoilt, run, replace(SHORT, tolerance=2 * relative)).passed
    assert not verified(spoilt, run, replace(SHORT, tolerance=relative / 2)).passed


def test_an_artifact_without_the_adapter_in_it_has_no_effect(run, exported, copy, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(TINY, bare)
    dead = copy(exported)
    weights = dead / "adapter_model.safetensors"
    save_file({name: tensor * ("lora_A" in name) for name, tensor in load_file(weights).items()},
              weights)
    for artifact in (bare, dead):
        found = verified(artifact, run)
        assert not found.passed
        assert any(remark.startswith("NO EFFECT") for remark in found.remarks)


@pytest.mark.long
def test_a_quantised_run_is_compared_with_both_bases(tmp_path):
    from lorafit.cli.verbs.run import export_adapter, merge

    run = trained(tmp_path, "nf4", model={"quantization": "nf4"})
    merge(run, None, None, None)
    export_adapter(run, None, None, "peft")
    of_merged, of_adapter = verified(run / "merged", run), verified(run / "exported", run)
    assert of_merged.passed
    assert of_adapter.passed
    names = [each.against for each in of_merged.compared]
    assert names[0] == "the base in nf4 that it was trained on with the run's adapter"
    assert names[1] == "the full-precision base with the run's adapter"
    quantised, full = (each.facts["relative_rms"] for each in of_merged.compared[:2])
    assert quantised > full
    assert all(not figure.limit for figure in of_merged.compared[0].figures)
    assert of_adapter.compared[0].facts["bit_equal"]
    assert "as servers do" in of_adapter.compared[1].against
    assert of_adapter.compared[1].facts["relative_rms"] > 1e-3
    assert "measured again" in str(figures(of_merged, 3).keys())


@pytest.mark.long
def test_what_a_model_was_merged_onto_is_what_it_is_judged_by(tmp_path):
    from lorafit.cli.verbs.run import merge

    run = trained(tmp_path, "nf4", model={"quantization": "nf4"})
    for onto in ("dequantised", "requantised"):
        merge(run, tmp_path / onto, None, None, onto)
    right, again = verified(tmp_path / "dequantised", run), verified(tmp_path / "requantised", run)
    assert right.passed
    assert [any(figure.limit for figure in each.figures) for each in right.compared[:2]] \
        == [True, False]
    assert right.agrees == "computes what was trained"
    assert again.passed
    assert not any(figure.limit for each in again.compared[:2] for figure in each.figures)
    assert "was not judged" in again.agrees
    assert not verified(tmp_path / "requantised", run, replace(SHORT, tolerance=1e-3)).passed


@pytest.mark.parametrize("form", ["vllm", "sglang", "mlx", "gguf"])
def test_what_other_programs_get_is_verified_by_their_rules_to_the_answer(run, tmp_path, form):
    if form == "gguf":
        pytest.importorskip("gguf", reason="the extra gguf is not installed")
    from lorafit.cli.verbs.run import export_adapter

    artifact = tmp_path / "exported"
    export_adapter(run, artifact, None, form)
    found = verified(artifact, run)
    assert found.passed
    assert found.compared[0].facts["greedy_answers_equal"] == SHORT.prompts
    if form == "gguf":
        import gguf

        for tensor in gguf.GGUFReader(artifact / "adapter.gguf", "r+").tensors:
            tensor.data[...] *= 2 if tensor.name.endswith("lora_a") else 1
    else:
        weights = next(artifact.glob("*.safetensors"))
        save_file({name: 2 * tensor if name.endswith(("lora_A.weight", "lora_a")) else tensor
                   for name, tensor in load_file(weights).items()}, weights)
    assert not verified(artifact, run).passed


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_a_merged_model_as_gguf_has_its_papers_and_is_verified(run, tmp_path, kind):
    gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
    from lorafit.cli.verbs.gguf import merge

    merge(run, tmp_path / "merged", None, None, "gguf", kind)
    artifact = open_artifact(tmp_path / "merged")
    assert artifact.stored == {"f16": "float16"}.get(kind, kind)
    assert artifact.proof["form"] == "merged model as GGUF"
    assert "ollama create" in (tmp_path / "merged" / "README.md").read_text()
    assert verified(tmp_path / "merged", run).passed
    for tensor in gguf.GGUFReader(tmp_path / "merged" / "model.gguf", "r+").tensors:
        if tensor.name == "blk.1.attn_norm.weight":
            tensor.data[...] *= 3
    assert not verified(tmp_path / "merged", run).passed


def test_a_format_that_offers_only_its_check_is_verified_by_it(run, exported, copy, monkeypatch):
    """As a new format is, from the moment that it is named among the formats."""
    peft = formats.format_named("peft")
    new = Format("new", "a new program", peft.refuse, peft.write, peft.check,
                 owns=lambda folder: (folder / "new.txt").exists())
    known = {"new": new, "peft": peft}
    monkeypatch.setattr("lorafit.verify.artifact.FORMATS", known)
    monkeypatch.setattr("lorafit.verify.artifact.format_named", known.get)
    artifact = copy(exported)
    (artifact / "lorafit_proof.json").unlink()
    (artifact / "new.txt").write_text("")
    found = verified(artifact, run)
    assert "a new program" in found.subject
    assert found.passed
    weights = artifact / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights)
    assert not verified(artifact, run).passed


def test_what_was_measured_is_kept_in_the_proof(run, exported, copy):
    artifact = copy(exported)
    (artifact / "lorafit_proof.json").unlink()
    opened, source = open_artifact(artifact), open_adapter(run)
    record(opened, source, SHORT, verify_against(opened, source, SHORT))
    proof = read_proof(artifact)
    assert proof["made_by"] == "lorafit verify"
    figures_kept = next(iter(proof["measured"].values()))
    assert figures_kept["greedy_answers_equal"] == 4
    assert verified(artifact, run).passed  # and it holds
    opened = open_artifact(artifact)
    record(opened, source, SHORT, verify_against(opened, source, SHORT))
    assert read_proof(artifact)["files"] == proof["files"]
    assert "verified" in read_proof(artifact)


def test_things_that_are_no_artifact_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        open_artifact(tmp_path / "nothing")
    with pytest.raises(UserError, match="is a run, not what left it"):
        open_artifact(run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a model"):
        open_artifact(tmp_path / "empty")


def test_the_command_names_what_was_changed_and_ends_with_exit_code_5(exported, copy):
    spoilt = copy(exported)
    config = json.loads((spoilt / "adapter_config.json").read_text())
    (spoilt / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 9}))
    done = subprocess.run([sys.executable, "-m", "lorafit", "verify", str(spoilt)],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stdout + done.stderr
    assert "adapter_config.json is changed" in done.stdout
    assert "is not what its proof says (files)" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_figure_has_its_line_also_where_it_cannot_be_kept(run, exported, copy, capsys):
    from lorafit.cli.verbs import artifact as verbs

    spoilt, wanted = copy(exported), {
        "rows": 1, "prompts": 1, "tokens": 2, "tolerance": None, "json_to": None,
        "for_endpoint": []}
    (spoilt / ".lorafit_proof.json.partial").mkdir()  # where it is written to before it is renamed
    with pytest.raises(MachineError, match="cannot be written"):
        verbs.verify(spoilt, run, None, keep=True, **wanted)
    shown = capsys.readouterr().out
    for name in ("relative difference", "largest difference", "KL", "top-1", "log-probabilities",
                 "held-out loss", "greedy answers", "computes what was trained"):
        assert name in shown
    verbs.verify(spoilt, run, None, keep=False, **wanted)


def test_an_artifact_that_would_build_other_prompts_is_found(run, exported, copy):
    name = "tokenizer and chat template"
    artifact = copy(exported)
    template = (artifact / "chat_template.jinja").read_text()
    (artifact / "chat_template.jinja").write_text(template.replace("<|end|>", "<|end|> "))
    (artifact / "lorafit_proof.json").unlink()
    found = verified(artifact, run)
    assert not found.passed
    assert figures(found)["relative difference of the logits"].passed
    assert figures(found, 1)[name].value == "has another chat template"
    (artifact / "chat_template.jinja").unlink()
    assert figures(verified(artifact, run), 1)[name].value == "has no chat template"
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (artifact / file).unlink()
    assert verified(artifact, run).passed  # the base's tokenizer is what programs take
