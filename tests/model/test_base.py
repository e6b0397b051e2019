"""Bases that load, bases that must not, and the loss that is computed on them."""

import json
import re
import shutil
import sys

import pytest
import torch
from torch.nn import functional as F

from lorafit.errors import UserError
from lorafit.model.base import TINY, load_base, load_config, load_tokenizer
from lorafit.model.loss import IGNORED, summed_cross_entropy
from lorafit.recipe.schema import Model
from lorafit.run_dir import sha256

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_embedded_base_loads_in_every_dtype(dtype):
    model = load_base(Model(base="tiny"), dtype, "sdpa", CPU)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert not any(p.requires_grad for p in model.parameters())


def dequantised_twin(quantised):
    """An ordinary embedded base that holds the weights that a quantised one stands for."""
    import bitsandbytes

    full = load_base(Model(base="tiny"), "float32", "eager", CPU)
    for name, module in quantised.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(
                module.weight.data, module.weight.quant_state)
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
            weight = module.weight.data.float() * module.weight.SCB[:, None] / 127
        else:
            continue
        full.get_submodule(name).weight.data.copy_(weight)
    return full


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_a_quantised_base_computes_what_its_dequantised_weights_do(kind):
    """int8 also rounds the activations, so it is near, not equal."""
    small = load_base(Model(base="tiny", quantization=kind), "float32", "eager", CPU)
    assert any(p.dtype in (torch.uint8, torch.int8) for p in small.parameters())
    ids = torch.arange(5, 60)[None]
    with torch.inference_mode():
        a, b = dequantised_twin(small)(input_ids=ids).logits, small(input_ids=ids).logits.float()
    assert float((a - b).norm() / a.norm()) < (1e-4 if kind != "int8" else 0.1)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_gradients_through_a_quantised_base_are_right_before_and_after_an_evaluation(kind):
    """Against an ordinary base that holds the dequantised weights. An evaluation in between must
    not change them: bitsandbytes repacks 4-bit weights for inference on some CPUs."""
    from lorafit.model.adapters.add import add_adapter
    from lorafit.recipe.adapter import Adapter

    quantised = load_base(Model(base="tiny", quantization=kind), "float32", "eager", CPU)
    ids = torch.arange(5, 65).reshape(2, 30)
    gradients = []
    for base in (dequantised_twin(quantised), quantised):
        model = add_adapter(base, Adapter(rank=4), 0, "tiny")
        for _ in range(2):
            model.zero_grad()
            summed_cross_entropy(model, ids, torch.ones_like(ids), ids).backward()
            gradients.append(torch.cat([p.grad.flatten() for name, p in model.named_parameters()
                                        if "lora_B" in name]))
            model.eval()
            with torch.inference_mode():
                model(input_ids=ids)
            model.train()
    wanted, _, before, after = gradients
    assert torch.equal(before, after)
    # int8 also rounds the activations to 8 bits, so its gradient is near, not equal.
    allowed = 1e-4 if kind != "int8" else 0.1
    assert float((before - wanted).norm() / wanted.norm()) < allowed


def test_the_embedded_base_fits_its_package():
    assert sum(file.stat().st_size for file in TINY.iterdir()) <= 8_000_000


def test_the_embedded_base_has_the_perplexity_recorded_beside_it():
    """On generated text of another seed; a uniform guess has 4,096."""
    import importlib.util
    import math

    from tests.conftest import REPOSITORY

    spec = importlib.util.spec_from_file_location(
        "tiny_corpus", REPOSITORY / "scripts" / "tiny_corpus.py")
    corpus = importlib.util.module_from_spec(spec)
    sys.modules["tiny_corpus"] = corpus
    spec.loader.exec_module(corpus)
    readme = (TINY / "README.md").read_text()
    recorded = float(re.search(r"^\| all \| ([\d.]+) \|$", readme, re.MULTILINE)[1])
    assert sha256(TINY / "model.safetensors") in readme
    tokenizer = load_tokenizer(Model(base="tiny"))
    model = load_base(Model(base="tiny"), "float32", "sdpa", CPU)
    total, tokens = 0.0, 0
    for document in corpus.documents(seed=2_000_000, count=150):
        ids = tokenizer(document.text, return_tensors="pt").input_ids
        with torch.inference_mode():
            total += float(summed_cross_entropy(model, ids, torch.ones_like(ids), ids))
        tokens += ids.shape[1] - 1
    assert math.exp(total / tokens) == pytest.approx(recorded, rel=0.15)


@pytest.mark.parametrize(("prepare", "message"), [
    (lambda d: None, "config.json"),
    (lambda d: (d / "adapter_config.json").write_text("{}"), "adapter, not a base"),
    (lambda d: (d / "config.json").write_text("{"), "is damaged: not JSON"),
    (lambda d: (d / "config.json").write_text('{"model_type": "nothing"}'), "cannot be loaded"),
])
def test_a_directory_that_is_no_base_is_refused(tmp_path, prepare, message):
    prepare(tmp_path)
    with pytest.raises(UserError, match=message):
        load_config(Model(base=str(tmp_path)))


def test_a_hub_name_without_a_hub_is_refused_at_once():
    with pytest.raises(UserError, match=r"hub|no such"):
        load_config(Model(base="nobody/nothing"))


def test_pickled_weights_are_refused(tmp_path):
    shutil.copy(TINY / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="pickle"):
        load_base(Model(base=str(tmp_path)), "float32", "eager", CPU)


def test_code_that_comes_with_a_model_does_not_run(tmp_path):
    config = json.loads((TINY / "config.json").read_text())
    config |= {"model_type": "custom", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match="code of its own"):
        load_config(Model(base=str(tmp_path)))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3",
                                    "mixtral", "gpt_oss"])
def test_summed_loss_equals_an_independent_sum_over_all_logits(shrunken, family):
    """Against the plain definition in float64, soft-capped and scaled logits included."""
    model = load_base(Model(base=str(shrunken(family))), "float32", "eager", CPU)
    torch.manual_seed(0)
    ids = torch.randint(5, 500, (3, 17))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    labels = torch.where(torch.rand(ids.shape) < 0.4, ids, IGNORED)
    labels[mask == 0] = IGNORED
    with torch.inference_mode():
        got = summed_cross_entropy(model, ids, mask, labels)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.double()
    wanted = sum(
        -F.log_softmax(logits[b, t], -1)[labels[b, t + 1]]
        for b in range(3) for t in range(16) if labels[b, t + 1] != IGNORED
    )
    assert float(got) == pytest.approx(float(wanted), rel=1e-5)


def test_a_batch_without_a_supervised_token_has_no_loss_and_no_gradient():
    model = load_base(Model(base="tiny"), "float32", "sdpa", CPU)
    model.get_input_embeddings().weight.requires_grad_(True)
    ids = torch.full((1, 2), 3)
    loss = summed_cross_entropy(model, ids, torch.ones_like(ids), torch.full_like(ids, IGNORED))
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(model.get_input_embeddings().weight.grad.abs().max()) == 0
