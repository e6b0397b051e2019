"""What a step has to compute, and what a device takes for it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from lorafit.bench.arithmetic import count
from lorafit.model.adapters.add import add_adapter
from lorafit.plan.calibration import UNITS, Key, Measured, fit, keep, kept
from lorafit.plan.shapes import shapes_of
from lorafit.plan.trained import trained_of
from lorafit.plan.work import Rows, Work, full_fine_tuning, work_of
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.schema import Model

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 320}
ROWS = Rows(tokens=100, supervised_tokens=40, squares=0, micro_batches=1)


@pytest.fixture
def llama(tmp_path):
    config = AutoConfig.for_model("llama", **SMALL)
    config.save_pretrained(tmp_path)
    return config, shapes_of(Model(base=str(tmp_path)))


@pytest.mark.parametrize("words", [
    {}, {"rank": 32}, {"target_modules": ["q_proj", "v_proj"]}, {"layers": "last:1"}], ids=str)
def test_flops_are_those_that_are_counted_on_a_model(words, llama):
    config, shapes = llama
    section = Adapter(**words)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config)
        bare = AutoModelForCausalLM.from_config(config)
    wanted = count(bare, add_adapter(base, section, 0, ""), section)
    assert not isinstance(wanted, str)
    work = work_of(shapes, trained_of(shapes, section), ROWS)
    assert work.flops == pytest.approx(100 * wanted.adapted + 40 * wanted.head)
    every = trained_of(shapes, Adapter(method="full", exclude_modules=["lm_head"]))
    assert work_of(shapes, every, ROWS).flops == pytest.approx(
        100 * wanted.full + 40 * wanted.head)


def test_square_layers_take_two_thirds_and_two_ranks_over_the_width(tmp_path):
    """2/3 + 2R/N, for N = 4096: 0.674 at rank 16, 0.792 at 256."""
    config = AutoConfig.for_model("llama", **SMALL | {
        "hidden_size": 4096, "intermediate_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 8})
    config.save_pretrained(tmp_path)
    shapes = shapes_of(Model(base=str(tmp_path)))
    rows = Rows(tokens=100, supervised_tokens=0, squares=0, micro_batches=1)
    full = work_of(shapes, full_fine_tuning(shapes), rows).flops
    for rank, wanted in ((16, 0.674), (256, 0.792)):
        lora = work_of(shapes, trained_of(shapes, Adapter(rank=rank)), rows).flops
        assert round(lora / full, 3) == wanted


def test_a_token_goes_through_its_experts_alone(tmp_path):
    config = AutoConfig.for_model("qwen3_moe", **SMALL | {
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48})
    config.save_pretrained(tmp_path)
    two = shapes_of(Model(base=str(tmp_path)))
    config.num_experts_per_tok = 4
    config.save_pretrained(tmp_path)
    four = shapes_of(Model(base=str(tmp_path)))
    section = Adapter(experts="none")
    more = (work_of(four, trained_of(four, section), ROWS).flops
            - work_of(two, trained_of(two, section), ROWS).flops)
    assert more == pytest.approx(100 * 3 * 2 * 4 * (2 * 48 * 64 + 64 * 48))


def test_recomputation_is_one_more_forward_pass(llama):
    _, shapes = llama
    trained = trained_of(shapes, Adapter())
    none, selective, full = (work_of(shapes, trained, ROWS, recomputation=way).flops
                             for way in ("none", "selective", "full"))
    weights = sum(math.prod(w.shape) for w in shapes.weights if w.part in ("attention", "mlp"))
    low_rank = sum(16 * sum(w.shape) for w, _ in trained.adapted)
    assert full - none == pytest.approx(100 * 2 * (weights + low_rank))
    assert none < selective < full


@given(st.lists(st.floats(1e-3, 1e3), min_size=5, max_size=5), st.data())
def test_what_a_device_takes_is_found_again(rates, data):
    true = dict(zip(UNITS, rates, strict=True))
    draw = st.floats(0.1, 10.0)
    works = [Work(*(data.draw(draw) for _ in UNITS)) for _ in range(12)]
    measured = [Measured(w, sum(getattr(w, u) * true[u] for u in UNITS)) for w in works]
    found = fit("a device", measured)
    assert found.error < 1e-3
    assert all(seconds >= 0 for seconds in found.seconds.values())
    for each in measured:
        assert found.step_s(each.work) == pytest.approx(each.seconds, rel=1e-3)


def test_kept_for_the_device_the_threads_and_the_format(monkeypatch, tmp_path):
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path))
    work = Work(1.0, 2.0, 3.0, 0.0, 4.0)
    found = fit("this CPU", [Measured(work, 2.0)])
    key = Key("this CPU", 2, "float32", "none")
    keep(key, found)
    assert kept(key) == found
    assert kept(Key("this CPU", 1, "float32", "none")) is None
    assert kept(Key("this CPU", 2, "bfloat16", "none")) is None
    key.path.write_text(key.path.read_text().replace('"flops"', '"flop"'))
    assert kept(key) is None
