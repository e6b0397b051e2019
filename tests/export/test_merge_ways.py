"""Merging an adapter of a quantised base in three ways, and the check by tensors."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorafit.errors import UserError, VerificationError
from lorafit.export import merge as merging
from lorafit.export.merge import compare_ways, merge, plan_of
from lorafit.export.merge_plan import Update
from lorafit.export.onto import ONTO, Way, recommend
from lorafit.export.verify import Agreement
from lorafit.model.trained import open_adapter


def test_each_way_is_measured_and_the_dequantised_one_is_what_was_trained(run_of):
    found = compare_ways(open_adapter(run_of("nf4")))
    by_name = {way.onto: way for way in found.ways}
    assert tuple(by_name) == ONTO
    kl = {name: way.agreement.mean_kl for name, way in by_name.items()}
    assert kl["dequantised"] < 1e-3 < min(kl["full"], kl["requantised"])
    assert by_name["dequantised"].loss == pytest.approx(found.trained_loss, rel=2e-2)
    assert by_name["requantised"].size_bytes < by_name["dequantised"].size_bytes
    json.dumps(found.as_dict())


def test_what_is_written_loads_in_transformers_alone(run_of, tmp_path):
    from transformers import AutoModelForCausalLM

    source = open_adapter(run_of("nf4"))
    stored = {}
    for onto in ("dequantised", "requantised"):
        result = merge(source, tmp_path / onto, onto=onto)
        assert result.onto == onto
        assert result.in_memory
        model = AutoModelForCausalLM.from_pretrained(tmp_path / onto)
        stored[onto] = type(model.model.layers[0].mlp.up_proj).__name__
        ids = torch.arange(5, 40)[None]
        assert torch.isfinite(model(input_ids=ids).logits).all()
    assert stored == {"dequantised": "Linear", "requantised": "Linear4bit"}
    assert result.agreement.relative_rms > 1e-3  # rounded again, and said so


def test_a_base_that_was_not_quantised_has_one_way(run_of, tmp_path):
    source = open_adapter(run_of("plain"))
    for ask in (lambda: compare_ways(source),
                lambda: merge(source, tmp_path / "merged", onto="requantised")):
        with pytest.raises(UserError, match="one way to merge"):
            ask()
    assert not (tmp_path / "merged").exists()


def test_a_base_of_another_vocabulary_is_refused_though_the_adapter_would_fit(run_of, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lorafit.model.base import TINY

    longer = AutoModelForCausalLM.from_pretrained(TINY)
    longer.resize_token_embeddings(longer.config.vocab_size + 64)
    longer.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="vocab_size is 4160 there and was 4096 in training"):
        open_adapter(run_of("plain"), str(tmp_path / "base"))
    record = run_of("plain") / "record.json"
    whole = record.read_text()
    try:
        record.write_text(whole[:-9])
        with pytest.raises(UserError, match="is damaged"):
            open_adapter(run_of("plain"))
    finally:
        record.write_text(whole)


def test_the_plan_says_what_the_merge_then_does(run_of, tmp_path):
    for name in ("saved", "layers"):
        source = open_adapter(run_of(name))
        found = plan_of(source)
        result = merge(source, tmp_path / name, by="tensors")
        assert sum(found.updated.values()) == result.tensors.updated
        assert sum(found.replaced.values()) + len(found.added) == result.tensors.replaced
        assert found.unchanged == result.tensors.unchanged
        written = sum(tensor.nbytes
                      for tensor in load_file(tmp_path / name / "model.safetensors").values())
        assert found.size_bytes == written
    assert plan_of(open_adapter(run_of("ia3"))).in_memory


def test_no_room_is_found_before_the_first_tensor(run_of, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1000))
    with pytest.raises(UserError, match="has no room"):
        merge(open_adapter(run_of("plain")), tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_the_papers_tell_which_check_was_made(run_of, tmp_path):
    from lorafit.cli.verbs import run as verbs

    verbs.merge(run_of("plain"), tmp_path / "merged", None, None, check="tensors")
    proof = json.loads((tmp_path / "merged" / "lorafit_proof.json").read_text())
    assert proof["measured"] == {}
    assert proof["tensors"]["updated"] > 0
    assert proof["tensors"]["largest_relative"] < 4e-3
    card = (tmp_path / "merged" / "README.md").read_text()
    assert f"{proof['tensors']['updated']} changed ones" in card
    assert "relative difference of the logits" not in card


@pytest.mark.parametrize(("given", "message"), [
    ({"compare": True, "output": Path("x")}, "--compare writes nothing.*--output"),
    ({"compare": True, "onto": "requantised"}, "--compare writes nothing.*--onto"),
    ({"plan": True, "check": "tensors"}, "--plan writes nothing.*--check"),
    ({"json_to": Path("-")}, "only goes with --compare or --plan"),
    ({"onto": "both"}, "use full, dequantised or requantised"),
])
def test_options_without_a_use_are_refused(run_of, given, message):
    from lorafit.cli.verbs import run as verbs

    with pytest.raises(UserError, match=message):
        verbs.merge(run_of("plain"), **{"output": None, "base": None, "dtype": None} | given)


def test_the_nearest_of_equal_losses_is_recommended():
    def way(onto: str, loss: float, kl: float) -> Way:
        return Way(onto, Agreement(0, 0, 1, kl, 1, False), loss, 1)

    assert recommend([way("full", 1.001, 0.1), way("dequantised", 1.0, 0.0)], 1.0)[0] \
        == "dequantised"
    assert recommend([way("full", 0.8, 0.1), way("dequantised", 1.0, 0.0)], 1.0)[0] == "full"


@pytest.mark.parametrize("name", ["plain", "rslora", "patterns", "dora", "saved", "layers",
                                  "pissa", "paca", "full"])
def test_tensors_agree_for_every_kind_of_adapter(run_of, tmp_path, name):
    result = merge(open_adapter(run_of(name)), tmp_path / "merged", by="tensors")
    found = result.tensors
    assert result.agreement is None
    assert found.updated + found.replaced > 0
    assert found.unchanged > 0
    assert found.largest_relative < 4e-3  # bfloat16
    again = merge(open_adapter(run_of(name)), tmp_path / "again", by="logits")
    assert again.tensors is None
    assert again.agreement.relative_rms < 3e-2


def test_a_wrong_tensor_is_named_and_nothing_is_kept(run_of, tmp_path, monkeypatch):
    source = open_adapter(run_of("plain"))
    right = Update.apply
    monkeypatch.setattr(Update, "apply", lambda self, weight: right(self, weight) * 1.01)
    with pytest.raises(VerificationError, match=r"layers\.0\..*is off by 1"):
        merge(source, tmp_path / "merged", by="tensors")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    written = merging._merged
    monkeypatch.setattr(merging, "_merged", lambda plan, tensor: (
        block + ("norm" in tensor.name) for block in written(plan, tensor)))
    with pytest.raises(VerificationError, match=r"norm.*is not the base's"):
        merge(source, tmp_path / "merged", by="tensors")


def test_less_memory_than_the_model_takes_leads_to_the_check_by_tensors(run_of, tmp_path,
                                                                        monkeypatch):
    monkeypatch.setattr(merging, "free_memory_bytes", lambda: 1 << 20)
    assert merge(open_adapter(run_of("plain")), tmp_path / "merged").tensors is not None


@pytest.mark.parametrize("by", ["tensors", "logits"])
def test_a_base_with_more_layers_than_were_trained_is_refused(run_of, tmp_path, by):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lorafit.model.base import TINY

    taller = AutoModelForCausalLM.from_pretrained(TINY)
    taller.model.layers.append(copy.deepcopy(taller.model.layers[0]))
    taller.config.num_hidden_layers += 1
    if getattr(taller.config, "layer_types", None):
        taller.config.layer_types = [*taller.config.layer_types, taller.config.layer_types[0]]
    taller.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="incomplete"):
        merge(open_adapter(run_of("plain") / "adapter", str(tmp_path / "base")),
              tmp_path / "merged", by=by)
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_another_shape_is_refused_before_anything_is_written(run_of, tmp_path):
    run = run_of("plain")
    copied = tmp_path / "copied"
    copied.mkdir()
    for file in (run / "adapter").iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    tensors = load_file(copied / "adapter_model.safetensors")
    name = next(key for key in tensors if key.endswith("q_proj.lora_B.weight"))
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, copied / "adapter_model.safetensors")
    with pytest.raises(UserError, match="q_proj"):
        merge(open_adapter(copied), tmp_path / "merged")
    tensors[name] = torch.full_like(load_file(run / "adapter/adapter_model.safetensors")[name],
                                    torch.nan)
    save_file(tensors, copied / "adapter_model.safetensors")
    with pytest.raises(UserError, match="not finite"):
        merge(open_adapter(copied), tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copied"]
    assert Path(run).exists()
