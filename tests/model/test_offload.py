"""What layers keep goes to the host and comes back, bit for bit, without a GPU: copies are made by
lanes that are as late as they may be."""

import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from lorafit.data.batches import collate
from lorafit.data.packing import Layout, MicroBatch
from lorafit.data.tokens import Tokens
from lorafit.errors import UserError
from lorafit.model import offload
from lorafit.model.adapters.add import add_adapter
from lorafit.model.base import load_base
from lorafit.model.fast.mlp import FastGatedMlp
from lorafit.model.fast.speed_up import speed_up
from lorafit.model.inventory import decoder_layers
from lorafit.model.isolation import settle_packing
from lorafit.model.loss import SummedLoss
from lorafit.model.offload import (
    KEY,
    ON_THE_WAY,
    Offloading,
    offload_layers,
    refuse_offloading,
    settle_offloading,
)
from lorafit.model.recompute import recompute_activations, settle_recomputation
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.auto import Decision
from lorafit.recipe.loading import dump_recipe
from lorafit.recipe.schema import Model
from lorafit.run_dir import RunDir
from lorafit.smoke import smoke_recipe
from tests.conftest import adapter_tensors, largest_difference

CPU = torch.device("cpu")


class LateLanes:
    """Copies are made when somebody waits for them, and not before. What is read earlier is not a
    number; what is dropped earlier is an error."""

    device = CPU

    def __init__(self) -> None:
        self.sent: list[StorageWeakRef] = []
        self.fetched = 0

    def out(self, data: torch.Tensor) -> tuple[torch.Tensor, Any]:
        self.sent.append(StorageWeakRef(data.untyped_storage()))
        host = torch.full_like(data, 0xFF)
        source = weakref.ref(data)

        def copy() -> None:
            kept = source()
            assert kept is not None, "dropped while it was being copied"
            host.copy_(kept)

        return host, copy

    def back(self, host: torch.Tensor) -> tuple[torch.Tensor, Any]:
        self.fetched += 1
        data = torch.full_like(host, 0xFF)
        return data, lambda: data.copy_(host)

    def wait(self, event: Callable[[], None]) -> None:
        event()

    @property
    def still_there(self) -> int:
        return sum(not storage.expired() for storage in self.sent)


@pytest.fixture
def module(shrunken: Callable[..., Path]) -> Callable[..., SummedLoss]:
    def make(family: str = "llama", checkpointing: str = "none", **adapter: Any) -> SummedLoss:
        base = load_base(Model(base=str(shrunken(family))), "float32", "sdpa", CPU)
        if checkpointing == "full":
            recompute_activations(base)
        settle_packing(base, Decision("training.batching", "padding_free", "auto"), "sdpa")
        adapted = add_adapter(base, Adapter(rank=4, **adapter), 0, "base")
        torch.manual_seed(2)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if ".lora_B." in name:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
        it = SummedLoss(adapted.train(), speed_up(adapted).head)
        settle_recomputation(it, checkpointing, 64, CPU, 2**40, may_run_layers_again=True)
        return it

    return make


def loss(module: SummedLoss, seed: int = 0) -> torch.Tensor:
    random = np.random.default_rng(seed)
    vocabulary = module.model.config.get_text_config().vocab_size
    rows = [Tokens(random.integers(0, vocabulary, n).astype(np.int32), random.random(n) < 0.7)
            for n in (9, 4, 12)]
    batch = collate(rows.__getitem__, MicroBatch(((0, 1, 2),)), Layout("padding_free", 3, 32), 0)
    torch.manual_seed(seed)  # of dropout
    summed: torch.Tensor = module(**batch.inputs)
    return summed


def outcome(module: SummedLoss, seed: int = 0) -> list[torch.Tensor]:
    summed = loss(module, seed)
    summed.backward()
    found = [summed.detach(), *(p.grad for p in module.parameters() if p.requires_grad)]
    module.zero_grad()
    return found


def offloaded(module: SummedLoss) -> LateLanes:
    lanes = LateLanes()
    offload_layers(module.model, decoder_layers(module.model), lanes, smallest_bytes=1)
    return lanes


@pytest.mark.parametrize(("family", "adapter"), [
    ("llama", {}), ("llama", {"dropout": 0.2}), ("phi3", {}), ("gemma3_text", {"dora": True}),
    ("qwen3_moe", {}), ("gpt2", {})], ids=str)
def test_gradients_are_the_same_to_the_bit(module: Callable[..., SummedLoss], family: str,
                                           adapter: dict[str, Any]) -> None:
    kept = module(family, **adapter)
    wanted = [outcome(kept, seed) for seed in range(2)]
    lanes = offloaded(kept)
    for seed in range(2):
        for a, b in zip(outcome(kept, seed), wanted[seed], strict=True):
            assert torch.equal(a, b)
    assert len(lanes.sent) > 4 * 2  # each layer keeps several, in each of two passes
    assert lanes.fetched <= len(lanes.sent)


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_with_checkpoints(module: Callable[..., SummedLoss], checkpointing: str) -> None:
    it = module(checkpointing=checkpointing)
    wanted = outcome(it)
    lanes = offloaded(it)
    for a, b in zip(outcome(it), wanted, strict=True):
        assert torch.equal(a, b)
    if checkpointing == "full":
        assert len(lanes.sent) == lanes.fetched == len(decoder_layers(it.model))


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_the_device_holds_none_of_it(module: Callable[..., SummedLoss], checkpointing: str) -> None:
    it = module(checkpointing=checkpointing)
    lanes = offloaded(it)
    summed = loss(it)
    # What the last layer hands on is held by what comes after it.
    assert lanes.still_there <= ON_THE_WAY + 1 < len(lanes.sent) + 2
    summed.backward()
    del summed
    assert lanes.still_there == 0


def test_a_loss_that_is_dropped_disturbs_nothing(module: Callable[..., SummedLoss]) -> None:
    it = module()
    wanted = outcome(it)
    offloaded(it)
    loss(it, seed=1)
    for a, b in zip(outcome(it), wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="copies of a GPU need a GPU"))])
def test_a_stack_of_layers_on_the_device(kind: str) -> None:
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(
        torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.LayerNorm(64))
        for _ in range(12)).to(kind)

    def gradients(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        x = torch.randn(512, 64).to(kind)
        for layer in layers:
            x = layer(x)
        return list(torch.autograd.grad(x.square().mean(), list(layers.parameters())))

    wanted = [gradients(seed) for seed in range(4)]
    lanes = LateLanes() if kind == "cpu" else offload.CudaLanes(torch.device(kind, 0))
    offload_layers(layers, layers, lanes, smallest_bytes=1)
    for seed in range(4):
        for a, b in zip(gradients(seed), wanted[seed], strict=True):
            assert torch.equal(a, b)


def offloading(**settings: Any) -> Offloading:
    return Offloading(LateLanes(), **{"own": frozenset(), "smallest_bytes": 64, **settings})


def test_views_of_a_storage_move_once_and_keep_their_strides() -> None:
    it = offloading()
    whole = torch.randn(8, 6)
    views = [whole, whole.t(), whole[2:5, ::2], whole[:, :1].expand(8, 4), whole.view(torch.int32)]
    packed = [it.pack(view) for view in views]
    assert len(it.lanes.sent) == 1
    for view, one in zip(views, packed, strict=True):
        got = it.unpack(one)
        assert got.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr()
        assert torch.equal(got, view)
        assert got.stride() == view.stride()
    assert it.lanes.fetched == 1
    assert torch.equal(it.unpack(packed[0]), whole)  # a graph that was retained asks again


def test_what_is_changed_in_place_is_another_tensor() -> None:
    it = offloading()
    x = torch.zeros(64)
    before = it.pack(x.clone())
    first = it.pack(x)
    it._forward_is_over()
    x.add_(1)
    second = it.pack(x)
    assert [float(it.unpack(one).sum()) for one in (second, first, before)] == [64, 0, 0]


def test_weights_small_tensors_and_other_kinds_stay() -> None:
    weight = torch.randn(64)
    it = offloading(own=frozenset([weight.untyped_storage().data_ptr()]))
    for tensor in (weight, weight.view(8, 8).t(), torch.randn(15), torch.nn.Parameter(weight),
                   torch.eye(20).to_sparse(), torch.randn(64, dtype=torch.complex64).conj()):
        assert it.pack(tensor) is tensor
        assert it.unpack(tensor) is tensor
    assert it.lanes.sent == []


def test_with_it_auto_runs_layers_again(module: Callable[..., SummedLoss]) -> None:
    for may, chosen in ((True, "full"), (False, "none")):
        decision = settle_recomputation(module(), "auto", 64, CPU, 2**40,
                                        may_run_layers_again=may, offloads=True)
        assert decision.value == chosen


def test_an_own_function_saves_through_the_same_hooks(module: Callable[..., SummedLoss]) -> None:
    """The fast forms are functions of their own, whose tensors move as well."""
    it = module()
    fast = next(m for m in it.modules() if isinstance(m, FastGatedMlp))
    x = torch.randn(6, fast.gate_proj.in_features, requires_grad=True)

    def gradient() -> torch.Tensor:
        return torch.autograd.grad(fast(x).square().sum(), x)[0]

    wanted = gradient()
    hooks = offloading(smallest_bytes=1,
                       own=frozenset(p.untyped_storage().data_ptr() for p in it.parameters()))
    with torch.autograd.graph.saved_tensors_hooks(hooks.pack, hooks.unpack):
        got = gradient()
    assert torch.equal(got, wanted)
    # What the function keeps (x, gate, up), and not what the square behind it alone does.
    assert len(hooks.lanes.sent) >= 4


@pytest.mark.parametrize("checkpointing", ["auto", "selective", "none"])
def test_a_run_with_it_is_the_run_without(make_recipe: Callable[..., Any],
                                          train: Callable[..., Any], checkpointing: str,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run, with dropout, as on a GPU but for the lanes. `auto` is then `full`."""
    from lorafit.train import prepare

    lanes = LateLanes()
    monkeypatch.setattr(offload, "CudaLanes", lambda device: lanes)
    monkeypatch.setattr(offload, "SMALLEST_BYTES", 1)
    monkeypatch.setattr(prepare, "refuse_offloading", lambda *_: None)
    found = []
    for wanted, setting in ((False, checkpointing.replace("auto", "full")), (True, checkpointing)):
        recipe = make_recipe(f"run-{wanted}", adapter={"dropout": 0.1}, training={
            "activation_offloading": wanted, "activation_checkpointing": setting})
        train(recipe)
        found.append(adapter_tensors(recipe.output.dir))
        record = RunDir(Path(recipe.output.dir)).record.read_text(encoding="utf-8")
        assert (KEY in record) == wanted
    assert largest_difference(*found) == 0
    assert lanes.sent
    assert lanes.still_there == 0
    assert ("only layers' inputs move" in record) == (checkpointing == "auto")


def test_on_a_cpu_it_is_refused_before_anything_is_written(
        make_recipe: Callable[..., Any], tmp_path: Path) -> None:
    recipe = make_recipe(training={"activation_offloading": True})
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    process = subprocess.run([sys.executable, "-m", "lorafit", "train", str(path)], text=True,
                             capture_output=True, env=os.environ | {"LORAFIT_DEVICE": "cpu"})
    assert process.returncode == 2, process.stderr
    said = " ".join(process.stderr.split())
    assert f"{KEY}: true" in said
    assert f"--set {KEY}=false" in said
    assert "in the host's memory already" in said
    assert "Traceback" not in said
    assert not Path(recipe.output.dir).exists()


def test_a_smoke_run_goes_without_it_on_a_cpu(make_recipe: Callable[..., Any], tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFIT_DEVICE", "cpu")
    recipe = make_recipe(training={"activation_offloading": True})
    assert not smoke_recipe(recipe, tmp_path, False).training.activation_offloading


def test_without_it_nothing_is_put_on() -> None:
    assert settle_offloading(None, False, CPU) == []
    refuse_offloading(False, CPU, torch.nn.Module())
    with pytest.raises(UserError, match="no list of decoder layers"):
        refuse_offloading(True, torch.device("cuda", 0), torch.nn.Linear(2, 2))
