"""GGUF files hold what was trained: read by transformers' own reader, and by llama.cpp's rules."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lorafit.errors import UserError
from lorafit.export.adapter import export_adapter
from lorafit.export.formats import format_named
from lorafit.export.gguf.convert import convert
from lorafit.export.gguf.merged import merge_to_gguf
from lorafit.model.base import TINY
from lorafit.model.trained import open_adapter

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
IDS = torch.arange(5, 60)[None]

LAYERS = {"num_hidden_layers": 7,
          "layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"]}


def read_by_transformers(folder: Path, config: Any = None) -> torch.Tensor:
    options = {} if config is None else {"config": config}
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf",
                                                 dtype=torch.float32, **options)
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize(("family", "changes"), [
    ("llama", {"tie_word_embeddings": True}), ("llama", {"tie_word_embeddings": False}),
    ("mistral", {"sliding_window": None}), ("qwen2", {}), ("qwen3", {}), ("gemma2", {}),
    ("gemma3_text", LAYERS), ("phi3", {"sliding_window": None}),
])
def test_transformers_reads_the_model_that_was_written(shrunken, tmp_path, family, changes):
    base, out = shrunken(family, **changes), tmp_path / "out"
    out.mkdir()
    convert(base, out)
    # Its reader knows no mistral, and takes the file for the Llama that it computes as.
    config = None if family == "mistral" else AutoConfig.from_pretrained(base)
    read = read_by_transformers(out, config)
    wanted = logits(base)
    assert float((read - wanted).norm() / wanted.norm()) < 1e-5


def test_the_metadata_alone_rebuild_the_tiny_base(tmp_path):
    convert(TINY, tmp_path)
    read, wanted = read_by_transformers(tmp_path), logits(TINY)
    assert float((read - wanted).norm() / wanted.norm()) < 1e-5
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert fields["tokenizer.ggml.eot_token_id"].contents() == tokenizer.eos_token_id
    template = fields["tokenizer.chat_template"].contents()
    assert "generation" not in template.replace("add_generation_prompt", "")
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == \
        tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)


@pytest.mark.parametrize("name", ["plain", "rslora", "paca", "layers", "pissa"])
def test_an_adapter_read_by_llama_cpps_rules_computes_what_was_trained(run_of, tmp_path, name):
    result = export_adapter(open_adapter(run_of(name)), tmp_path / "out", format_named("gguf"))
    assert result.agreement.relative_rms < 1e-5
    reader = gguf.GGUFReader(tmp_path / "out" / "adapter.gguf")
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["general.architecture"].contents() == "llama"
    assert {tensor.tensor_type for tensor in reader.tensors} == {gguf.GGMLQuantizationType.F32}
    modelfile = (tmp_path / "out" / "Modelfile").read_text()
    assert "FROM ./base.gguf\nADAPTER ./adapter.gguf\n" in modelfile
    assert 'PARAMETER stop "<|end|>"' in modelfile


def test_what_rslora_scales_is_in_b_and_a_plain_adapter_is_not_touched(run_of, tmp_path):
    """llama.cpp multiplies by alpha / rank, and by nothing else."""
    for name in ("plain", "rslora"):
        export_adapter(open_adapter(run_of(name)), tmp_path / name, format_named("gguf"))
        tensors = load_file(run_of(name) / "adapter" / "adapter_model.safetensors")
        b = tensors["base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"]
        stored = {tensor.name: tensor.data for tensor in
                  gguf.GGUFReader(tmp_path / name / "adapter.gguf").tensors}
        factor = 8 ** 0.5 if name == "rslora" else 1
        torch.testing.assert_close(torch.from_numpy(stored["blk.0.attn_v.weight.lora_b"].copy()),
                                   b * factor, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "reason"), [
    ("dora", "does not load DoRA"), ("saved", "modules trained in full"),
    ("ia3", "this adapter is ia3"), ("full", "leaves a model, not an adapter"),
    ("patterns", "embeddings and output head are one weight"),
])
def test_what_a_gguf_adapter_cannot_hold_is_refused_with_the_way_out(run_of, tmp_path, name,
                                                                     reason):
    with pytest.raises(UserError, match=reason) as refused:
        export_adapter(open_adapter(run_of(name)), tmp_path / "out", format_named("gguf"))
    assert "lorafit merge" in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "limit"), [(None, 1e-5), ("q8_0", 5e-2)])
def test_a_merged_gguf_is_base_and_adapter(run_of, tmp_path, kind, limit):
    result = merge_to_gguf(open_adapter(run_of("rslora")), tmp_path / "out", kind)
    assert result.converted.kind == (kind or "bf16")
    assert result.agreement.relative_rms < limit
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["Modelfile", "model.gguf"]
    assert 'TEMPLATE """{{ range .Messages }}' in (tmp_path / "out" / "Modelfile").read_text()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--format", "gguf", "--gguf-type", "q4"], "unknown storage type 'q4'"),
    (["--format", "onnx"], "unknown format 'onnx'"),
    (["--gguf-type", "f16"], "--gguf-type is for --format gguf"),
    (["--format", "gguf", "--dtype", "float16"], "--dtype is for --format safetensors"),
])
def test_what_is_asked_wrongly_is_refused(run_of, tmp_path, arguments, message, capsys,
                                          monkeypatch):
    from lorafit.cli import main as cli

    monkeypatch.setattr(sys, "argv", ["lorafit", "merge", str(run_of("plain")), *arguments,
                                      "--output", str(tmp_path / "out")])
    assert cli._run() == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_llama_cpp_would_compute_otherwise_is_refused(shrunken, tmp_path):
    with pytest.raises(UserError, match="take turns between sliding and full attention"):
        convert(shrunken("gemma3_text"), tmp_path)
    with pytest.raises(UserError, match="gpt2 is not written as GGUF"):
        convert(shrunken("gpt2"), tmp_path)


def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(tmp_path, shrunken):
    base = shrunken("llama")
    spec = json.loads((base / "tokenizer.json").read_text())
    spec["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                             "use_regex": True}
    (base / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match="cuts text in a way that llama"):
        convert(base, tmp_path)


def test_rows_that_do_not_divide_into_blocks_are_stored_in_f16(shrunken, tmp_path):
    converted = convert(shrunken("llama", hidden_size=48, head_dim=12), tmp_path, "q8_0")
    assert converted.fallbacks > 0
    kinds = {tensor.name: tensor.tensor_type.name
             for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["token_embd.weight"] == "F16"
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"
    assert kinds["output_norm.weight"] == "F32"


def test_embeddings_of_their_own_are_adapted_too(make_recipe, train, shrunken, tmp_path):
    """llama.cpp looks rows of A up where other layers multiply by it."""
    base = shrunken("llama", tie_word_embeddings=False)
    recipe = make_recipe(model={"base": str(base)}, training={"learning_rate": 1e-2},
                         adapter={"target_modules": ["k_proj", "embed_tokens", "lm_head"]})
    train(recipe)
    result = export_adapter(open_adapter(Path(recipe.output.dir)), tmp_path / "out",
                            format_named("gguf"))
    assert result.agreement.relative_rms < 1e-5
    shapes = {tensor.name: tensor.data.shape for tensor in
              gguf.GGUFReader(tmp_path / "out" / "adapter.gguf").tensors}
    assert shapes["token_embd.weight.lora_a"] == (4096, 4)
    assert shapes["output.weight.lora_b"] == (4096, 4)
