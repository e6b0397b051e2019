"""Upper layers only: below the lowest trained layer nothing is kept and nothing computed back."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from lorafit.model.adapters.add import add_adapter
from lorafit.model.base import load_base
from lorafit.model.loss import summed_cross_entropy
from lorafit.model.recompute import recompute_activations
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.schema import Model
from tests.conftest import adapter_tensors

LAYERS = 4  # of the embedded base
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4}, "paca": {"method": "paca", "rank": 4}, "full": {"method": "full"},
    "bottleneck": {"method": "bottleneck", "rank": 4},
}
IDS = torch.arange(5, 65).reshape(2, 30)
LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {"attention_mask": torch.ones_like(IDS)},
    "packed": {"attention_mask": None, "position_ids": torch.arange(10).repeat(2, 3)},
}


def adapted(section: dict[str, Any], recompute: bool = False) -> Any:
    base = load_base(Model(base="tiny"), "float32", "sdpa", torch.device("cpu"))
    if recompute:
        recompute_activations(base)
    base.config.use_cache = False
    return add_adapter(base, Adapter(**section), 0, "tiny")


def decoder(model: Any) -> Any:
    return model.get_base_model().model.layers


class Kept:
    """A tensor that autograd holds for the backward pass."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class Watch:
    """What a forward pass keeps, by the decoder layer that it is kept in.

    saved: bytes that autograd holds of each layer after the forward pass, parameters left out.
    outputs: whether each layer's output still lives. backward: layers that a gradient reached.
    """

    def __init__(self, model: Any, layout: dict[str, Any]) -> None:
        self.backward: set[int] = set()
        outputs: list[Any] = []
        kept: list[tuple[int, Any, int]] = []
        current: list[int | None] = [None]
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def enter(number: int) -> Any:
            return lambda *_: current.__setitem__(0, number)

        def leave(number: int) -> Any:
            def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
                current[0] = None
                outputs.append(weakref.ref(output))
                if output.requires_grad:
                    output.register_hook(lambda gradient: self.backward.add(number))
            return hook

        def pack(tensor: torch.Tensor) -> Kept:
            held = Kept(tensor)
            if current[0] is not None and tensor.untyped_storage().data_ptr() not in own:
                kept.append((current[0], weakref.ref(held), tensor.nbytes))
            return held

        handles = [handle for number, layer in enumerate(decoder(model)) for handle in (
            layer.register_forward_pre_hook(enter(number)),
            layer.register_forward_hook(leave(number)))]
        with saved_tensors_hooks(pack, lambda held: held.tensor):
            self.loss = summed_cross_entropy(model, IDS, labels=IDS, **layout)
        for handle in handles:
            handle.remove()
        gc.collect()
        self.outputs = [reference() is not None for reference in outputs]
        self.saved = [sum(nbytes for layer, held, nbytes in kept
                          if layer == number and held() is not None) for number in range(LAYERS)]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_below_the_lowest_trained_layer_nothing_is_kept(method, layout, recompute):
    model = adapted({**METHODS[method], "layers": "last:2"}, recompute)
    watch = Watch(model, LAYOUTS[layout])
    assert watch.saved[:2] == [0, 0]
    assert all(kept > 0 for kept in watch.saved[2:])
    # The output of layer 1 is what layer 2 starts from; that of layer 0 nobody needs.
    assert not watch.outputs[0]
    assert all(watch.outputs[2:])
    watch.loss.backward()
    assert watch.backward == {2, 3}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("method", METHODS)
def test_with_all_layers_everything_is_kept(method):
    """The same measurement sees what there is when nothing is left out."""
    watch = Watch(adapted(METHODS[method]), LAYOUTS["padded"])
    watch.loss.backward()
    assert all(kept > 0 for kept in watch.saved)
    assert watch.backward == {0, 1, 2, 3}


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_of_upper_layers_is_that_of_the_whole_model(method):
    """What is left out is not an approximation."""
    gradients = []
    for choice in ({}, {"layers": "last:1"}):
        model = adapted({**METHODS[method], **choice})
        torch.manual_seed(0)
        with torch.no_grad():  # LoRA's A is drawn in the order of the layers
            for name, parameter in model.named_parameters():
                if "lora_A" in name:
                    generator = torch.Generator().manual_seed(len(name))
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
        summed_cross_entropy(model, IDS, labels=IDS, **LAYOUTS["padded"]).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()
                          if parameter.requires_grad})
    whole, upper = gradients
    assert 0 < len(upper) < len(whole)
    assert any(float(gradient.abs().max()) > 0 for gradient in upper.values())
    for name, gradient in upper.items():
        assert torch.equal(gradient, whole[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_a_run_trains_the_upper_layers_alone(make_recipe, train, method):
    adapter = {"rank": None, "alpha": None, **METHODS[method], "layers": "last:1"}
    recipe = make_recipe(adapter=adapter, data={"max_length_tokens": 100},
                         training={"batching": "packed", "activation_checkpointing": True})
    result = train(recipe)
    assert result.progress.best_loss < result.progress.first_eval_loss
    assert all(".layers.3." in name for name in adapter_tensors(recipe.output.dir))
