"""What paca, bottleneck and full have in common, on real architectures and through real runs."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lorafit.errors import UserError
from lorafit.model.adapters.add import add_adapter, refuse_misfit
from lorafit.model.adapters.facts import describe
from lorafit.model.adapters.files import load_adapter, save_adapter, trained_state
from lorafit.model.base import load_base, load_config, meta_model
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.schema import Model
from tests.conftest import adapter_tensors, largest_difference

FAMILIES = ["llama", "qwen3", "gemma3_text", "gpt2", "mixtral", "qwen3_moe"]
METHODS: dict[str, dict[str, Any]] = {
    "paca": {"method": "paca", "rank": 4},
    "bottleneck": {"method": "bottleneck", "rank": 8, "options": {"placement": "houlsby"}},
    "full": {"method": "full"},
}
IDS = torch.arange(5, 45).reshape(2, 20)


def base(name: Any = "tiny", dtype: str = "float32", quantization: str = "none") -> Any:
    section = Model(base=str(name), quantization=quantization)
    return load_base(section, dtype, "eager", torch.device("cpu"))


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits


def steps(model: Any, number: int, rate: float = 1e-3) -> Iterator[float]:
    """Losses of so many steps of AdamW on one batch."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, fused=True)
    for _ in range(number):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        yield float(loss.detach())
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_own_method_starts_as_the_base_and_trains_what_it_says(shrunken, tmp_path, family,
                                                                   method):
    """And nothing else; saved and loaded again it computes the same to the bit."""
    path = shrunken(family)
    before = logits(base(path))
    model = add_adapter(base(path), Adapter(**METHODS[method]), 0, str(path))
    assert torch.equal(logits(model), before)
    frozen = {name: parameter.detach().clone() for name, parameter in model.named_parameters()
              if not parameter.requires_grad}
    first = {name: tensor.clone() for name, tensor in trained_state(model).items()}
    losses = list(steps(model, 4))
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        if name not in frozen:
            continue
        if method == "paca" and name.endswith("base.weight"):
            layer = model.get_submodule(name.removesuffix(".base.weight"))
            moved = parameter if isinstance(layer.base, torch.nn.Linear) else parameter.T
            was = frozen[name] if isinstance(layer.base, torch.nn.Linear) else frozen[name].T
            others = torch.ones(moved.shape[1], dtype=torch.bool)
            others[layer.columns] = False
            assert torch.equal(moved[:, others], was[:, others]), name
        else:
            assert torch.equal(parameter, frozen[name]), name
    last = trained_state(model)
    for name, tensor in last.items():
        assert name.endswith("columns") == torch.equal(tensor, first[name]), name
    save_adapter(tmp_path, model)
    again = load_adapter(base(path), tmp_path)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert torch.equal(logits(again), logits(model))
    assert not torch.equal(logits(again), before)
    assert all(torch.equal(tensor, last[name]) for name, tensor in trained_state(again).items())


@pytest.mark.parametrize(("method", "dtype", "quantization"), [
    *((method, dtype, "none") for method in METHODS for dtype in ("bfloat16", "float16")),
    *((method, "bfloat16", stored) for method in ("paca", "bottleneck")
      for stored in ("nf4", "int8")),
])
def test_an_own_method_trains_in_float32_over_any_base(tmp_path, method, dtype, quantization):
    model = add_adapter(base(dtype=dtype, quantization=quantization),
                        Adapter(**METHODS[method]), 0, "tiny")
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {
        torch.float32}
    losses = list(steps(model, 5))
    assert losses[-1] < losses[0] - 0.3
    save_adapter(tmp_path, model)
    again = load_adapter(base(dtype=dtype, quantization=quantization), tmp_path)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize(("method", "dtype"), [
    ("paca", "float32"), ("paca", "bfloat16"), ("bottleneck", "float32"), ("full", "bfloat16"),
])
def test_a_resumed_run_of_an_own_method_ends_with_the_same_bytes(make_recipe, train, method,
                                                                 dtype):
    """With evaluations, sample answers and the best checkpoint put back in between."""
    def run(name: str, number: int, resume: bool = False) -> Path:
        adapter = {"alpha": None, "rank": None, **METHODS[method]}
        if method == "bottleneck":
            adapter["dropout"] = 0.1
        recipe = make_recipe(name, model={"dtype": dtype}, adapter=adapter, training={
            "steps": number, "checkpoint_every": 3, "eval_every": 2,
            "sample_prompts": ["How much is 1 and 2?"], "sample_tokens": 2})
        train(recipe, resume=resume)
        return Path(recipe.output.dir)

    whole = run("whole", 6)
    run("part", 3)
    rest = run("part", 6, resume=True)
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (whole / name).read_bytes() == (rest / name).read_bytes()
    curves = [[line["loss"] for line in map(
        json.loads, (path / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
        for path in (whole, rest)]
    assert curves[0] == curves[1]


@pytest.mark.parametrize("method", METHODS)
def test_the_layout_of_a_step_changes_nothing_that_an_own_method_trains(make_recipe, train,
                                                                        method):
    """Adam moves a weight whose gradient is near zero by the sign of a rounding error, unless its
    epsilon is above that."""
    results = []
    for name, training in (("plain", {}), ("small", {"micro_batch_size": 1}),
                           ("packed", {"batching": "packed"}),
                           ("recomputed", {"activation_checkpointing": True})):
        adapter = {"alpha": None, "rank": None, **METHODS[method]}
        recipe = make_recipe(name, adapter=adapter, data={"max_length_tokens": 100},
                             training={"epsilon": 1e-3, **training})
        train(recipe)
        results.append(adapter_tensors(recipe.output.dir))
    for other in results[1:]:
        assert largest_difference(results[0], other) < 1e-6


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_train_what_one_does(make_recipe, tmp_path, method):
    results = []
    for ranks in (1, 2):
        adapter = {"alpha": None, "rank": None, **METHODS[method]}
        recipe = make_recipe(f"ranks-{ranks}", adapter=adapter, model={"dtype": "float32"},
                             training={"micro_batch_size": 1})
        path = tmp_path / f"{ranks}.yaml"
        path.write_text(yaml.safe_dump(recipe.model_dump()))
        done = subprocess.run(
            [sys.executable, "-m", "lorafit", "train", str(path), "--num-processes", str(ranks)],
            capture_output=True, text=True, timeout=240,
            env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        results.append(adapter_tensors(recipe.output.dir))
    assert largest_difference(*results) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_counts_of_an_own_method_add_up_without_weights(method):
    """What `check` prints of a model without weights is what a run trains."""
    section = Adapter(**METHODS[method])
    known = describe(add_adapter(meta_model(load_config(Model(base="tiny"))), section, 0, "tiny"))
    loaded = add_adapter(base(dtype="bfloat16"), section, 0, "tiny")
    found = describe(loaded)
    assert known == found
    assert found.trainable_parameters == sum(kind.parameters for kind in found.kinds) > 0
    if method == "full":
        assert found.trainable_parameters == found.total_parameters


@pytest.mark.parametrize(("adapter", "message"), [
    ({"method": "bottleneck", "options": {"placment": "houlsby"}}, "did you mean placement"),
    ({"method": "bottleneck", "options": {"placement": "houlsbey"}}, "did you mean houlsby"),
    ({"method": "bottleneck", "options": {"activation": "softmax"}}, "gelu, relu, silu, tanh"),
    ({"method": "bottleneck", "layers": [9]}, "no layer 9"),
    ({"method": "paca", "options": {"columns": 3}}, "has no option columns"),
    ({"method": "paca", "rank": 300}, "above the 256 input columns"),
    ({"method": "paca", "target_modules": ["embed_tokens"]}, "is an embedding"),
    ({"method": "paca", "target_modules": ["lm_head"]}, "shares its weight"),
    ({"method": "paca", "target_modules": ["q_prj"]}, "did you mean q_proj"),
    ({"method": "full", "target_modules": ["q_prj"]}, "did you mean q_proj"),
    ({"method": "full", "exclude_modules": ["lm_hed"]}, "did you mean lm_head"),
])
def test_what_does_not_fit_is_refused_before_weights_are_loaded(adapter, message):
    with pytest.raises(UserError, match=message):
        refuse_misfit(meta_model(load_config(Model(base="tiny"))), Adapter(**adapter))


def test_an_own_adapter_of_another_base_is_refused(tmp_path, shrunken):
    for method, settings in METHODS.items():
        folder = tmp_path / method
        folder.mkdir()
        save_adapter(folder, add_adapter(base(), Adapter(**settings), 0, "tiny"))
        with pytest.raises(UserError, match="does not fit the base"):
            load_adapter(base(shrunken("qwen3")), folder)


def test_an_own_adapter_of_an_unknown_method_is_refused(tmp_path):
    save_adapter(tmp_path, add_adapter(base(), Adapter(**METHODS["paca"]), 0, "tiny"))
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"paca"', '"quiet"'))
    with pytest.raises(UserError, match="another version of lorafit"):
        load_adapter(base(), tmp_path)
