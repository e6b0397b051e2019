"""Sequences that share a row are computed as if each stood alone: packed = end to end = padded."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lorafit.data.batches import IGNORED, Batch, collate
from lorafit.data.packing import Layout, MicroBatch, split_rows
from lorafit.data.tokens import Tokens
from lorafit.errors import UserError
from lorafit.model.adapters.add import add_adapter
from lorafit.model.base import TINY, load_base
from lorafit.model.isolation import ensure_isolated, measure_crossing
from lorafit.model.loss import SummedLoss, summed_cross_entropy
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.auto import IN_RECIPE, Decision
from lorafit.recipe.schema import Model

ISOLATED = ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3", "qwen3_moe",
            "olmo2", "smollm3", "gpt2"]
SLIDING = ["gemma2", "gemma3_text", "mistral", "phi3"]
NO_SDPA = ["gemma2"]  # its attention has soft caps, which sdpa has not
# gpt_oss and opt do not hand positions to their masks; the others carry a state or a convolution.
LEAKING = ["gpt_oss", "opt", "qwen3_next", "lfm2", "mamba", "mamba2", "falcon_h1", "bamba"]

LENGTHS = (17, 5, 23, 1, 11, 9, 2, 14)
LAYOUTS = {
    "padded": Layout("padded", 3, 32),
    "padding_free": Layout("padding_free", 4, 32),
    "packed": Layout("packed", 2, 32),
    "packed in one row": Layout("packed", 2, 32, flat=True),
}
CPU = torch.device("cpu")


def examples(vocabulary: int, *, weighted: bool = False) -> list[Tokens]:
    random = np.random.default_rng(3)
    made = []
    for length in LENGTHS:
        supervised = random.random(length) < 0.7
        weights = np.where(supervised, random.choice([0.5, 1, 2], length), 0).astype(np.float32)
        made.append(Tokens(random.integers(0, vocabulary, length).astype(np.int32), supervised,
                           weights if weighted else None))
    return made


def batches_of(data: list[Tokens], layout: Layout) -> list[tuple[MicroBatch, Batch]]:
    parts = split_rows(np.array(list(map(len, data))), layout, 1)
    return [(part, collate(data.__getitem__, part, layout, 0)) for part in parts]


@torch.no_grad()
def logits_of(model: Any, data: list[Tokens], layout: Layout,
              change: Callable[[Batch], Batch] = lambda batch: batch) -> list[torch.Tensor]:
    """Logits of each example, (length, vocabulary), computed in this layout."""
    found: dict[int, torch.Tensor] = {}
    for part, batch in batches_of(data, layout):
        inputs = change(batch).inputs
        logits = model(**{key: inputs[key] for key in
                          ("input_ids", "attention_mask", "position_ids")}, use_cache=False).logits
        for row, values in zip(part.rows, logits, strict=True):
            start = 0
            for i in row:
                found[i] = values[start : start + len(data[i])]
                start += len(data[i])
    return [found[i] for i in range(len(data))]


def logits_alone(model: Any, data: list[Tokens]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(input_ids=torch.from_numpy(one.ids.astype(np.int64))[None],
                      use_cache=False).logits[0] for one in data]


def loss_of(logits: torch.Tensor, one: Tokens) -> float:
    """Weighted sum of −log p over an example's supervised tokens, written out."""
    log_p = F.log_softmax(logits.double(), dim=-1)
    weights = np.ones(len(one)) if one.weights is None else one.weights
    return -sum(float(weights[n]) * float(log_p[n - 1, one.ids[n]])
                for n in range(1, len(one)) if one.supervised[n])


def difference(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Largest over examples and tokens, relative to the largest logit of the example."""
    return max(float((a - b).abs().max() / b.abs().max())
               for a, b in zip(got, wanted, strict=True))


def loaded(shrunken: Callable[..., Path], model_type: str, attention: str) -> Any:
    """Windows shorter than the sequences: a window must not count its neighbour's tokens."""
    changes = {"sliding_window": 6} if model_type in SLIDING else {}
    path = shrunken(model_type, **changes)
    return load_base(Model(base=str(path)), "float32", attention, CPU)


def leaking(model_type: str) -> Any:
    """A small model of an architecture whose configuration has names of its own."""
    from transformers import AutoConfig, AutoModelForCausalLM

    mamba = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8,
             "mamba_chunk_size": 16}
    linear = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
              "linear_value_head_dim": 16}
    own = {
        "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
        "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
        "qwen3_next": {**linear, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16,
                       "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
                       "layer_types": ["linear_attention", "full_attention"]},
        "lfm2": {"layer_types": ["conv", "full_attention"]},
        "mamba": {"state_size": 8, "time_step_rank": 4},
        "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 2,
                   "chunk_size": 16},
        "falcon_h1": {**mamba, "mamba_d_ssm": 128, "head_dim": 16},
        "bamba": {**mamba, "attn_layer_indices": [1]},
    }[model_type]
    shared = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": 0,
              "bos_token_id": 1, "eos_token_id": 2}
    if not model_type.startswith("mamba"):
        shared |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128}
    torch.manual_seed(1)
    config = AutoConfig.for_model(model_type, **shared, **own)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32,
                                             attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.eval().requires_grad_(False)


def everywhere() -> list[Any]:
    cases = [(name, attention) for name in ISOLATED for attention in ("eager", "sdpa")
             if attention == "eager" or name not in NO_SDPA]
    return [
        *(pytest.param(*case, id="-".join(case)) for case in cases),
        *(pytest.param(name, "flex_attention", id=f"{name}-flex_attention",
                       marks=pytest.mark.long)  # compiles for most of a minute
          for name in ("llama", "mistral")),
    ]


@pytest.mark.parametrize(("model_type", "attention"), everywhere())
def test_every_layout_computes_each_sequence_as_if_alone(shrunken, model_type, attention):
    model = loaded(shrunken, model_type, attention)
    data = examples(model.config.vocab_size)
    wanted = logits_alone(model, data)
    losses = [loss_of(logits, one) for logits, one in zip(wanted, data, strict=True)]
    for layout in LAYOUTS.values():
        got = logits_of(model, data, layout)
        assert difference(got, wanted) < 1e-5
        for logits, one, loss in zip(got, data, losses, strict=True):
            assert loss_of(logits, one) == pytest.approx(loss, rel=1e-5)
        total = sum(float(summed_cross_entropy(model, **batch.inputs))
                    for _, batch in batches_of(data, layout))
        assert total == pytest.approx(sum(losses), rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available() or find_spec("flash_attn") is None,
                    reason="FlashAttention needs a CUDA device and the package flash-attn")
def test_flash_attention_keeps_sequences_apart_in_a_single_row(shrunken):
    """Only there: several rows are computed without a look at their positions."""
    base = Model(base=str(shrunken("llama")))
    model = load_base(base, "bfloat16", "flash_attention_2", torch.device("cuda"))
    assert measure_crossing(model, flat=True).is_isolated
    assert not measure_crossing(model, flat=False).is_isolated


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "padded"])
def test_without_positions_that_start_again_sequences_do_influence_each_other(shrunken, layout):
    """What the test above would see if a layout or an architecture let them."""

    def run_on(batch: Batch) -> Batch:
        positions = torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids)
        return replace(batch, position_ids=positions)

    model = loaded(shrunken, "llama", "sdpa")
    data = examples(model.config.vocab_size)
    wanted = logits_alone(model, data)
    assert difference(logits_of(model, data, LAYOUTS[layout], run_on), wanted) > 0.1


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "qwen3_moe", "gpt2"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_adapter_gradients_do_not_depend_on_the_layout(shrunken, model_type, weighted):
    base = loaded(shrunken, model_type, "eager")
    model = add_adapter(base, Adapter(rank=4, alpha=8), 0, model_type).eval()  # no dropout
    trained = {name: w for name, w in model.named_parameters() if w.requires_grad}
    torch.manual_seed(2)
    with torch.no_grad():  # B starts at zero, where A has no gradient
        for name, weight in trained.items():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    module = SummedLoss(model)
    data = examples(base.config.vocab_size, weighted=weighted)
    gradients = {}
    for name, layout in LAYOUTS.items():
        model.zero_grad()
        total = sum(module(**batch.inputs) for _, batch in batches_of(data, layout))
        total.backward()
        gradients[name] = torch.cat([w.grad.flatten() for w in trained.values()])
    size = gradients["padded"].norm()
    assert size > 0
    for name in LAYOUTS:
        assert float((gradients[name] - gradients["padded"]).norm() / size) < 1e-5


def test_weights_are_factors_on_the_loss_of_each_token(shrunken):
    model = loaded(shrunken, "llama", "sdpa")
    data = examples(model.config.vocab_size, weighted=True)
    wanted = sum(loss_of(logits, one)
                 for logits, one in zip(logits_alone(model, data), data, strict=True))
    for layout in LAYOUTS.values():
        got = sum(float(summed_cross_entropy(model, **batch.inputs))
                  for _, batch in batches_of(data, layout))
        assert got == pytest.approx(wanted, rel=1e-5)
    ones = [replace(one, weights=one.supervised.astype(np.float32)) for one in data]
    plain = [replace(one, weights=None) for one in data]
    totals = [sum(float(summed_cross_entropy(model, **batch.inputs))
                  for _, batch in batches_of(rows, LAYOUTS["packed"])) for rows in (ones, plain)]
    assert totals[0] == pytest.approx(totals[1], rel=1e-6)


@pytest.mark.parametrize("model_type", LEAKING)
def test_padded_batches_are_exact_where_packing_is_not(model_type):
    """A state runs from left to right, so padding on the right comes too late to matter."""
    model = leaking(model_type)
    data = examples(512)
    wanted = logits_alone(model, data)
    assert difference(logits_of(model, data, LAYOUTS["padded"]), wanted) < 1e-5
    for name in ("padding_free", "packed", "packed in one row"):
        assert difference(logits_of(model, data, LAYOUTS[name]), wanted) > 0.01


AUTO = Decision("training.batching", "packed", "a rule")
CHOSEN = Decision("training.batching", "padding_free", IN_RECIPE)


@pytest.mark.parametrize("model_type", LEAKING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_leak_is_found_on_the_loaded_model(model_type, dtype):
    model = leaking(model_type).to(dtype)
    for flat in (True, False):
        assert not measure_crossing(model, flat=flat).is_isolated
    found = ensure_isolated(model, AUTO, flat=False)
    assert (found.key, found.value) == ("training.batching", "padded")
    assert "influence each other" in found.reason
    with pytest.raises(UserError, match="influence each other") as refused:
        ensure_isolated(model, CHOSEN, flat=False)
    assert refused.value.problems[0].where == "training.batching: padding_free"
    assert "training.batching=padded" in refused.value.problems[0].remedy


@pytest.mark.parametrize("batching", ["padding_free", "packed"])
def test_a_run_that_cannot_be_packed_is_refused_before_anything_is_written(
        make_recipe, train, shrunken, batching):
    recipe = make_recipe(model={"base": str(shrunken("gpt_oss"))}, training={"batching": batching})
    with pytest.raises(UserError, match="share a row influence each other in gpt_oss"):
        train(recipe)
    assert not Path(recipe.output.dir).exists()


@pytest.mark.parametrize("model_type", ISOLATED)
def test_architectures_that_keep_sequences_apart_are_recognised(shrunken, model_type):
    model = loaded(shrunken, model_type, "eager")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for flat in (True, False):
            found = measure_crossing(model.to(dtype), flat=flat)
            assert found.is_isolated
            assert found.influence < 1e-5, "same shapes, same arithmetic"


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantised_bases_are_measured_too(quantization, dtype):
    model = load_base(Model(base="tiny", quantization=quantization), dtype, "sdpa", CPU)
    for decision in (AUTO, CHOSEN):
        assert ensure_isolated(model, decision, flat=False) == decision


def test_measuring_leaves_no_trace():
    model = load_base(Model(base="tiny"), "float32", "sdpa", CPU).train()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = (measure_crossing(model, flat=True) for _ in range(2))
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training


def test_a_model_that_takes_no_positions_is_not_packed():
    """As code that comes with a model may be written."""
    from transformers import LlamaForCausalLM

    class WithoutPositions(LlamaForCausalLM):
        def forward(self, input_ids, attention_mask=None, use_cache=None):
            return super().forward(input_ids, attention_mask, use_cache=use_cache)

    model = WithoutPositions.from_pretrained(TINY)
    assert not measure_crossing(model, flat=False).is_isolated
    assert ensure_isolated(model, AUTO, flat=False).value == "padded"


def test_positions_that_run_on_are_found_even_where_attention_is_kept_apart(shrunken):
    """The mask is right, the learned position embeddings are not."""
    from transformers import GPT2LMHeadModel

    class RunsOn(GPT2LMHeadModel):
        def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None):
            if position_ids is not None:
                sequence = (position_ids == 0).cumsum(dim=-1)
                same = sequence[:, None, :, None] == sequence[:, None, None, :]
                attention_mask = same & torch.ones(same.shape[-2:], dtype=torch.bool).tril()
            return super().forward(input_ids, attention_mask=attention_mask, use_cache=use_cache)

    model = RunsOn.from_pretrained(shrunken("gpt2"), attn_implementation="sdpa").eval()
    found = measure_crossing(model, flat=True)
    assert found.influence == 0
    assert not found.is_isolated


def test_labels_never_cross_from_one_sequence_to_the_next():
    data = examples(100)
    for layout in LAYOUTS.values():
        for part, batch in batches_of(data, layout):
            for row, labels in zip(part.rows, batch.labels, strict=True):
                starts = np.cumsum([0, *(len(data[i]) for i in row)])[:-1]
                assert labels[starts].eq(IGNORED).all()
