"""FLOPs of a step against what `bench` counts on a model, and against the arithmetic of papers."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lorafit.bench.arithmetic import count
from lorafit.data.packing import Layout
from lorafit.model.adapters.add import add_adapter
from lorafit.plan import calibration
from lorafit.plan.load import Load
from lorafit.plan.micro_batches import largest_drawn
from lorafit.plan.shapes import shapes_of
from lorafit.plan.step_time import count_flops, predict_step
from lorafit.plan.trained import trained_of
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.schema import Model

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 320}
RATES = calibration.Calibration(((256, 1e10), (1024, 3e10)), 0.5, 1e10, 1e10, 5e9, 1e8, 5e-6,
                                "test")


@pytest.mark.parametrize("words", [{}, {"rank": 4}, {"layers": "last:1"},
                                   {"target_modules": ["q_proj", "v_proj"]}], ids=str)
def test_counted_as_in_bench(words, tmp_path):
    config = AutoConfig.for_model("llama", **SMALL)
    config.save_pretrained(tmp_path)
    section = Adapter(**words)
    shapes = shapes_of(Model(base=str(tmp_path)))
    load = Load("float32", 10, 4, 1, 10)
    found = count_flops(shapes, trained_of(shapes, section), section, load)
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    wanted = count(base, add_adapter(AutoModelForCausalLM.from_config(config), section, 0, ""),
                   section)
    assert found.linear + found.thin == wanted.adapted * 10
    assert found.head == wanted.head * 4


def test_two_thirds_of_full_fine_tuning():
    """2/3 + 2R/N of the linear layers' work, for a square layer of width N at rank R."""
    tensors = {f"model.layers.{n}.self_attn.{part}.weight": (4096, 4096) for n in range(2)
               for part in ("q_proj", "k_proj", "v_proj", "o_proj")}
    tensors["model.embed_tokens.weight"] = (100, 4096)
    from lorafit.plan.shapes import from_tensors
    from lorafit.plan.sizes import sizes_of

    config = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 2,
              "num_attention_heads": 32, "vocab_size": 100}
    shapes = from_tensors(config, sizes_of(config, ""), tensors, 0, "")
    load = Load("bfloat16", 100, 100)
    for rank, ratio in ((16, 0.674), (256, 0.792)):
        lora, full = (count_flops(shapes, trained_of(shapes, section), section, load)
                      for section in (Adapter(rank=rank), Adapter(method="full")))
        assert (lora.linear + lora.thin) / full.linear == pytest.approx(ratio, abs=5e-4)


def test_a_step_grows_with_all_that_it_does(tmp_path):
    AutoConfig.for_model("llama", **SMALL).save_pretrained(tmp_path)
    shapes = shapes_of(Model(base=str(tmp_path)))

    def seconds(section=None, micro_batches=1.0, **load):
        section = section or Adapter()
        given = {"dtype": "float32", "tokens": 1000, "supervised_tokens": 500} | load
        return predict_step(shapes, trained_of(shapes, section), section, Load(**given),
                            micro_batches, RATES).total_s

    least = seconds()
    for more in (seconds(tokens=1100), seconds(supervised_tokens=600), seconds(micro_batches=2),
                 seconds(recomputation="full"), seconds(recomputation="selective"),
                 seconds(Adapter(rank=64)), seconds(Adapter(method="full")),
                 seconds(Adapter(dora=True)), seconds(quantization="nf4")):
        assert more > least
    assert seconds(Adapter(layers="last:1")) < least


def test_rates_are_kept_per_device_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path))
    assert calibration.cached("cpu", "float32", 1) is None
    found = calibration.calibrate("cpu", "float32", 1)
    assert calibration.cached("cpu", "float32", 1) == found
    assert calibration.cached("cpu", "bfloat16", 1) is None
    assert calibration.cached("cpu", "float32", 2) is None
    assert 1e8 < found.matrix_rate(512, 512) < 1e14
    assert found.matrix_rate(512, 8) <= found.matrix_rate(512, 512)


def test_a_sheet_says_its_range():
    found = calibration.by_sheet("NVIDIA H100 80GB HBM3")
    assert found.uncertainty[0] < 1 < found.uncertainty[1]
    assert "sheet" in found.source
    assert calibration.by_sheet("GeForce 256") is None


def test_the_largest_micro_batch_is_one_that_rows_can_make():
    lengths = np.array([10, 20, 30, 40, 400])
    supervised = lengths // 2
    for batching, tokens in (("padded", 800), ("padding_free", 440)):
        found = largest_drawn(lengths, supervised, Layout(batching, 2, 512), 5, steps=40)
        assert found.longest_tokens == 400
        assert found.tokens <= tokens
        assert found.supervised_tokens <= tokens // 2
        assert found.a_step == 3
    assert largest_drawn(lengths, supervised, Layout("padded", 5, 512), 5, 3).tokens == 2000
