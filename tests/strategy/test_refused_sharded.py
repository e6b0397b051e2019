"""What cannot be cut up among ranks is refused with its reason, before any weight is read."""

import json
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lorafit.errors import UserError
from lorafit.model.base import TINY, load_config, meta_model
from lorafit.model.parts import why_whole
from lorafit.recipe import auto
from lorafit.recipe.methods import METHODS
from lorafit.recipe.schema import Model
from lorafit.train.run import train
from lorafit.train.strategy.wanted import Wanted, refuse_misfit, why_not_sharded
from tests.methods.harness import section_of

WHOLE = [name for name, row in METHODS.items() if row.why_not_sharded]
STORED = {
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
            "weight_block_size": [64, 64]},
    "compressed_tensors": {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "quantization_status": "compressed", "config_groups": {"group_0": {
            "targets": ["Linear"], "input_activations": None, "weights": {
                "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
                "group_size": 32}}}},
    "torchao": {"quant_method": "torchao", "quant_type": {"default": {
        "_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}}},
}


@pytest.mark.parametrize("name", WHOLE)
def test_methods_that_need_whole_weights_stay_whole(name, make_recipe):
    section = section_of(name).model_dump(exclude_unset=True)
    recipe = make_recipe(adapter={"rank": None, "alpha": None, **section})
    reason = METHODS[name].why_not_sharded
    with pytest.raises(UserError) as refused:
        refuse_misfit(Wanted("fsdp"), recipe)
    assert str(refused.value) == (f"--strategy fsdp: cannot be sharded: {reason}\n"
                                  "    use --strategy ddp")
    chosen = auto.strategy("auto", 8, 8, 10**12, 10**10, why_not_sharded(recipe))
    assert chosen.value == "ddp"
    assert reason in chosen.reason


@pytest.mark.parametrize("kind", STORED)
def test_a_base_quantised_in_its_files_is_refused_before_it_is_read(kind, make_recipe, tmp_path):
    if kind != "fp8" and find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed")
    base = tmp_path / "base"  # without any weights: whoever looked for them would fail
    shutil.copytree(TINY, base, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": STORED[kind]}))
    recipe = make_recipe(model={"base": str(base), "dtype": "auto"})
    with pytest.raises(UserError, match=r"--strategy fsdp: cannot be sharded: the base is stored "
                                        r"as .*beside them\n    use --strategy ddp"):
        train(recipe, resume=False, announce=lambda record: None, started_s=time.perf_counter(),
              wanted=Wanted("fsdp", cpu_offload=True))
    assert not Path(recipe.output.dir).exists()


def test_what_is_known_of_a_base_keeps_it_whole(make_recipe):
    assert why_whole(meta_model(load_config(Model(base="tiny"))), None, "nf4") is None
    assert "layers" in str(why_whole(nn.Sequential(nn.Linear(2, 2)), None, "none"))
    gpt2 = AutoModelForCausalLM.from_config(AutoConfig.for_model(
        "gpt2", n_layer=1, n_embd=8, n_head=2, vocab_size=16))
    assert why_whole(gpt2, None, "none") is None
    reason = why_whole(gpt2, None, "nf4")
    assert "the other way round" in str(reason)
    assert why_not_sharded(make_recipe()) is None
    assert why_not_sharded(make_recipe(), reason) == reason
    chosen = auto.strategy("auto", 8, 8, 10**12, 10**10, reason)
    assert chosen.value == "ddp"
