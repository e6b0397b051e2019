"""What leaves a run computes what was trained: merged models and adapters, on real runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorafit.errors import UserError, VerificationError
from lorafit.export import merge_plan
from lorafit.export.adapter import export_adapter
from lorafit.export.merge import merge
from lorafit.model.base import TINY
from lorafit.model.trained import open_adapter

LARGE_RATE = {"steps": 4, "learning_rate": 1e-2}


def plain_logits(base: str | Path, adapter: Path | None, ids: torch.Tensor) -> torch.Tensor:
    """By transformers and peft alone."""
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32,
                                                 attn_implementation="eager")
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.inference_mode():
        return model.eval()(input_ids=ids).logits


def float32_tiny(folder: Path) -> Path:
    """The embedded base stored in float32, so that merging rounds to nothing visible."""
    AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return folder


IDS = torch.arange(5, 60)[None]


@pytest.mark.parametrize("adapter", [
    {},
    {"dora": True},
    {"rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["embed_tokens"]},
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"layers": "last:1"},
    {"init": "pissa"},
    {"init": "olora", "rslora": True},
    {"dropout": 0.3},
], ids=json.dumps)
def test_a_merged_model_is_base_plus_adapter_for_plain_transformers(make_recipe, train, tmp_path,
                                                                    adapter):
    base = float32_tiny(tmp_path / "base")
    recipe = make_recipe(model={"base": str(base)}, adapter=adapter, training=LARGE_RATE)
    train(recipe)
    result = merge(open_adapter(Path(recipe.output.dir)), tmp_path / "merged")
    assert not result.in_memory
    together = plain_logits(base, Path(recipe.output.dir) / "adapter", IDS)
    merged = plain_logits(tmp_path / "merged", None, IDS)
    assert float((merged - together).abs().max()) < 2e-3
    assert float((merged - plain_logits(base, None, IDS)).abs().max()) > 0.1


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_fused_experts_merge_in_memory(make_recipe, train, tmp_path, shrunken, family):
    base = shrunken(family)
    recipe = make_recipe(model={"base": str(base)}, training=LARGE_RATE)
    train(recipe)
    result = merge(open_adapter(Path(recipe.output.dir)), tmp_path / "merged")
    assert result.in_memory
    assert result.agreement.relative_rms < 1e-4
    assert float((plain_logits(tmp_path / "merged", None, IDS)
                  - plain_logits(base, None, IDS)).abs().max()) > 1e-3


def test_square_weights_that_are_stored_the_other_way_round_merge(make_recipe, train, tmp_path,
                                                                  shrunken):
    """GPT-2's: their shape does not tell."""
    base = shrunken("gpt2")
    recipe = make_recipe(model={"base": str(base)}, training=LARGE_RATE)
    train(recipe)
    result = merge(open_adapter(Path(recipe.output.dir)), tmp_path / "merged")
    assert not result.in_memory
    assert result.agreement.relative_rms < 1e-4
    assert float((plain_logits(tmp_path / "merged", None, IDS)
                  - plain_logits(base, None, IDS)).abs().max()) > 1e-3


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_run_merges_into_the_full_base_and_both_differences_are_shown(
        make_recipe, train, tmp_path, quantization):
    recipe = make_recipe(model={"quantization": quantization, "dtype": "bfloat16"},
                         training=LARGE_RATE)
    train(recipe)
    source = open_adapter(Path(recipe.output.dir))
    result = merge(source, tmp_path / "merged")
    assert result.agreement.relative_rms < 3e-2
    assert result.against_quantised.relative_rms > result.agreement.relative_rms
    assert export_adapter(source, tmp_path / "exported").agreement.bit_equal


def test_a_sharded_base_is_merged_shard_by_shard(make_recipe, train, tmp_path):
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).save_pretrained(
        base, max_shard_size="3MB")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(base)
    assert len(list(base.glob("*.safetensors"))) > 2
    recipe = make_recipe(model={"base": str(base)}, training=LARGE_RATE)
    train(recipe)
    merge(open_adapter(Path(recipe.output.dir)), tmp_path / "merged")
    names = [sorted(file.name for file in folder.glob("*.safetensors*"))
             for folder in (base, tmp_path / "merged")]
    assert names[0] == names[1]
    assert float((plain_logits(tmp_path / "merged", None, IDS) - plain_logits(
        base, Path(recipe.output.dir) / "adapter", IDS)).abs().max()) < 2e-3


def test_dtype_out_is_dtype_in_unless_asked(make_recipe, train, tmp_path):
    recipe = make_recipe(training=LARGE_RATE)
    train(recipe)
    source = open_adapter(Path(recipe.output.dir))
    merge(source, tmp_path / "same")
    merge(source, tmp_path / "wide", "float32")
    for folder, dtype in (("same", torch.bfloat16), ("wide", torch.float32)):
        tensors = load_file(tmp_path / folder / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {dtype}
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert config["dtype"] == str(dtype).removeprefix("torch.")


def test_the_exported_adapter_is_the_trainers_own_model(make_recipe, train, tmp_path, monkeypatch):
    """The model in the trainer's memory after the last step, against plain peft on the exported
    files: the tensors to the bit, and to the bit what peft computes with them; the trainer's own
    fast layers add in another order, so their logits agree but for rounding."""
    from peft import get_peft_model_state_dict

    from lorafit.train import run as running

    seen = {}
    write = running.write_result

    def spy(run, recipe, adapted, result):
        write(run, recipe, adapted, result)
        adapted.eval()
        with torch.inference_mode():
            seen["logits"] = adapted(input_ids=IDS, use_cache=False).logits
        seen["tensors"] = {name: tensor.clone() for name, tensor in
                           get_peft_model_state_dict(adapted).items()}

    monkeypatch.setattr(running, "write_result", spy)
    recipe = make_recipe(model={"attention": "eager"}, training=LARGE_RATE)
    train(recipe)
    export_adapter(open_adapter(Path(recipe.output.dir)), tmp_path / "exported")
    tensors = load_file(tmp_path / "exported" / "adapter_model.safetensors")
    assert tensors.keys() == seen["tensors"].keys()
    assert all(torch.equal(tensors[name], seen["tensors"][name]) for name in tensors)
    logits = plain_logits(TINY, tmp_path / "exported", IDS)
    assert float((logits - seen["logits"]).norm() / logits.norm()) < 1e-5


def test_an_export_carries_tokenizer_and_template(make_recipe, train, tmp_path):
    recipe = make_recipe(training={"steps": 1})
    train(recipe)
    export_adapter(open_adapter(Path(recipe.output.dir)), tmp_path / "exported")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(TINY).chat_template
    assert not (tmp_path / "exported" / "config.json").exists()


def test_a_wrong_merge_is_noticed(make_recipe, train, tmp_path, monkeypatch):
    """The check is not the computation: with twice the scale in the merge, it fails."""
    recipe = make_recipe(training=LARGE_RATE)
    train(recipe)
    right = merge_plan.realised_scale
    monkeypatch.setattr(merge_plan, "realised_scale", lambda *of, **rank: 2 * right(*of, **rank))
    with pytest.raises(VerificationError, match="differs from base"):
        merge(open_adapter(Path(recipe.output.dir)), tmp_path / "merged")


def test_an_adapter_alone_merges_too(make_recipe, train, tmp_path):
    recipe = make_recipe(training={"steps": 2})
    train(recipe)
    merge(open_adapter(Path(recipe.output.dir) / "checkpoints" / "step-00000002"),
          tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").exists()


def test_an_existing_target_an_unfinished_run_and_half_an_adapter_are_refused(
        make_recipe, train, tmp_path):
    recipe = make_recipe(training={"steps": 1})
    train(recipe)
    run = Path(recipe.output.dir)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("mine")
    for action in (merge, export_adapter):
        with pytest.raises(UserError, match="already exists"):
            action(open_adapter(run), taken)
    assert (taken / "file").read_text() == "mine"
    weights = run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors.pop(next(name for name in tensors if "lora_B" in name))
    save_file(tensors, weights)
    with pytest.raises(UserError, match="only one of A and B"):
        merge(open_adapter(run), tmp_path / "half")
    assert not (tmp_path / "half").exists()
    (weights.parent / "adapter_config.json").unlink()
    weights.unlink()
    weights.parent.rmdir()
    with pytest.raises(UserError, match="no result yet"):
        open_adapter(run)


def test_merge_needs_memory_near_one_shard(tmp_path):
    """A base of 12 shards of 16 MB: streaming it grows the process by far less than the whole."""
    import math

    shards = 12
    side = 2048
    folder, adapter = tmp_path / "base", tmp_path / "adapter"
    folder.mkdir()
    adapter.mkdir()
    weight_map, tensors = {}, {}
    for n in range(shards):
        name = f"model.layers.{n}.mlp.up_proj.weight"
        save_file({name: torch.randn(side, side)}, folder / f"m-{n:02d}.safetensors")
        weight_map[name] = f"m-{n:02d}.safetensors"
        module = f"base_model.model.model.layers.{n}.mlp.up_proj"
        tensors[f"{module}.lora_A.weight"] = torch.randn(4, side)
        tensors[f"{module}.lora_B.weight"] = torch.randn(side, 4)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    save_file(tensors, adapter / "adapter_model.safetensors")
    script = f"""
import threading
from pathlib import Path
from lorafit.export import merge as m
from lorafit.export.merge_plan import make_plan
from lorafit.model.trained import AdapterSource
from lorafit.recipe.schema import Model
source = AdapterSource(Path({str(adapter)!r}), {{"peft_type": "LORA", "r": 4, "lora_alpha": 4}},
                       Model(base="x"), None, None)
folder, output = Path({str(folder)!r}), Path({str(tmp_path / "out")!r})
output.mkdir()
shards = m.weight_shards(folder)
import peft, torch
torch.randn(8, 8) @ torch.randn(8, 8)
def own_kib():  # without the pages of mapped files, which the system drops when it likes
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0])
before = own_kib()
peaks, done = [before], threading.Event()
def watch():
    while not done.wait(0.001):
        peaks.append(own_kib())
watcher = threading.Thread(target=watch)
watcher.start()
m._merge_shards(make_plan(source, folder, shards), folder, shards, output, None, lambda t: None)
done.set()
watcher.join()
print(max(peaks) - before)
"""
    # The allocator keeps freed blocks of less than 32 MB, as these are, unless told otherwise; a
    # large model's tensors are above that.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          check=True, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)})
    grown_bytes = int(done.stdout.split()[-1]) * 1024
    shard_bytes = side * side * 4
    assert grown_bytes < 6 * shard_bytes < shards * shard_bytes
    merged = load_file(tmp_path / "out" / "m-00.safetensors")
    original = load_file(folder / "m-00.safetensors")
    name = "model.layers.0.mlp.up_proj"
    delta = (tensors[f"base_model.model.{name}.lora_B.weight"]
             @ tensors[f"base_model.model.{name}.lora_A.weight"])
    assert math.isclose(float((merged[f"{name}.weight"] - original[f"{name}.weight"]
                               - delta).abs().max()), 0, abs_tol=1e-5)


def test_a_bias_of_b_is_merged_where_the_layer_has_one_and_refused_otherwise(
        make_recipe, train, tmp_path, shrunken):
    for base, fits in ((shrunken("qwen2"), True), (float32_tiny(tmp_path / "llama"), False)):
        recipe = make_recipe(
            f"run-{base.name}", model={"base": str(base)}, training=LARGE_RATE,
            adapter={"target_modules": ["q_proj", "v_proj"], "options": {"lora_bias": True}})
        train(recipe)
        source = open_adapter(Path(recipe.output.dir))
        if fits:
            assert merge(source, tmp_path / "merged").agreement.relative_rms < 1e-4
            continue
        with pytest.raises(UserError, match="the layer has none"):
            merge(source, tmp_path / "not")
        assert not (tmp_path / "not").exists()
