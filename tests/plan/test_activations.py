"""What is kept for the backward pass, from shapes, against what a model really keeps."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lorafit.model.adapters.add import add_adapter
from lorafit.model.fast.attention import use_packed_attention
from lorafit.model.fast.proof import TOKENS
from lorafit.model.fast.speed_up import speed_up
from lorafit.model.loss import SummedLoss
from lorafit.model.recompute import kept_bytes, settle_recomputation
from lorafit.plan.activations import kept
from lorafit.plan.load import Load
from lorafit.plan.shapes import shapes_of
from lorafit.plan.trained import trained_of
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.schema import Model

SMALL = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 2,
         "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 512}
GROUPED = SMALL | {"num_key_value_heads": 2}
MIXTURE = GROUPED | {"num_local_experts": 8, "num_experts_per_tok": 2}
QWEN = GROUPED | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 640}
CPU = torch.device("cpu")
CASES = [
    ("llama", SMALL, {}, {}), ("llama", GROUPED, {}, {}), ("llama", SMALL, {"rank": 128}, {}),
    ("llama", SMALL, {"target_modules": ["q_proj", "v_proj"]}, {}),
    ("llama", SMALL, {"target_modules": ["gate_proj", "up_proj", "down_proj"]}, {}),
    ("llama", SMALL, {"target_modules": ["down_proj"]}, {}),
    ("llama", SMALL, {"layers": "last:1"}, {}), ("llama", SMALL, {"dropout": 0.1}, {}),
    ("llama", SMALL, {"method": "full"}, {}),
    ("llama", SMALL, {}, {"recomputation": "selective"}),
    ("llama", SMALL, {}, {"dtype": "bfloat16"}),
    ("qwen3", GROUPED, {}, {}), ("gemma", GROUPED | {"num_key_value_heads": 1}, {}, {}),
    ("mixtral", MIXTURE, {}, {}), ("qwen3_moe", QWEN, {}, {}),
    ("qwen3_moe", QWEN, {}, {"recomputation": "selective"}),
    ("mixtral", MIXTURE, {"target_modules": ["q_proj", "o_proj"]}, {}),
]


@pytest.mark.parametrize(("family", "sizes", "words", "how"), CASES, ids=str)
def test_kept_as_counted(family, sizes, words, how, tmp_path):
    config = AutoConfig.for_model(family, **sizes)
    config.save_pretrained(tmp_path)
    section = Adapter(**words)
    load = Load(**{"dtype": "float32", "tokens": TOKENS, "supervised_tokens": TOKENS - 1,
                   "rows": 2, "longest_tokens": 4} | how)
    shapes = shapes_of(Model(base=str(tmp_path)))
    predicted = kept(shapes, trained_of(shapes, section), section, load)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, load.dtype), attn_implementation="sdpa")
    model.requires_grad_(False)
    use_packed_attention(model)
    adapted = add_adapter(model, section, 0, "")
    module = SummedLoss(adapted, speed_up(adapted).head)
    settle_recomputation(module, load.recomputation, TOKENS, CPU, 2**40, may_run_layers_again=True)
    module.train()
    counted = kept_bytes(module, CPU)
    assert predicted.total == pytest.approx(counted, rel=0.02), predicted.total / counted
