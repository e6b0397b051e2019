"""The ways to train that are compared. Each has a model of its own; the frozen weights are shared.

- floor: the base without an adapter: forward pass, loss, and a backward pass down to the
  embeddings' output. No padding. No adapter can be cheaper than nothing.
- lorafit: what `lorafit train` does.
- peft: the same adapter in peft's own layers, padded batches, the loss from the model's own logits.
- full: the linear layers themselves are trained, otherwise as lorafit does.
- paca, upper: PaCA at the same rank; the same adapter on the upper half of the layers.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lorafit.bench.machine import held_tensors, now_s, storage_bytes
from lorafit.bench.workload import Workload
from lorafit.data.batches import Batch, collate
from lorafit.data.packing import Layout, split_rows
from lorafit.errors import UserError
from lorafit.model.adapters.add import add_adapter
from lorafit.model.adapters.step_rule import StepRule, step_rule
from lorafit.model.device import device_memory_bytes
from lorafit.model.fast.head import OutputHead, find_head
from lorafit.model.fast.speed_up import speed_up
from lorafit.model.inventory import decoder_layers, module_words, weights_of
from lorafit.model.isolation import settle_packing
from lorafit.model.loss import SummedLoss
from lorafit.model.named_modules import matched_names
from lorafit.model.offload import settle_offloading
from lorafit.model.recompute import recompute_activations, settle_recomputation
from lorafit.model.weights import LINEAR
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.auto import Decision
from lorafit.train.optimizer import build_optimizer
from lorafit.train.step import train_step
from lorafit.train.strategy.strategy import Strategy

_LEARNING_RATE = 1e-5  # small, so that what is measured stays what was checked
_TOTAL_STEPS = 10_000  # more than are ever measured; for methods with a schedule of their own


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one step. data: rows laid out and made into tensors. gradients: forward and
    backward passes of all micro-batches. update: clipping and optimizer. other: the rest."""

    whole_s: float
    data_s: float
    gradients_s: float
    update_s: float

    @property
    def other_s(self) -> float:
        return self.whole_s - self.data_s - self.gradients_s - self.update_s


@dataclass(frozen=True)
class First:
    """What a side computes before its first update, evaluated without dropout.

    loss: nats per supervised token. grad_norm: of what is trained; of the floor, of the embeddings'
    output. computed_tokens: with padding.
    """

    loss: float
    grad_norm: float
    tokens: int
    supervised_tokens: int
    computed_tokens: int


class Side:
    """A model that is trained in one way.

    model: as it is called in a step. head: computes the loss from hidden states; None where logits
    are the model's own. trains: whether there is anything to update.
    """

    def __init__(self, name: str, what: str, workload: Workload, model: Any,
                 head: OutputHead | None, layout: Layout, decisions: list[Decision],
                 trains: bool = True) -> None:
        self.name, self.what, self.workload = name, what, workload
        self.model, self.head, self.layout = model, head, layout
        self.decisions = decisions
        self.module = SummedLoss(model, head)
        self.optimizer: torch.optim.Optimizer | None = None
        self.rule: StepRule | None = None
        if trains:
            self.optimizer = build_optimizer(model.named_parameters(), workload.training,
                                             workload.device)
            self.rule = step_rule(model)
        self.steps_done = 0
        self._process = _OneProcess(workload.device)

    @property
    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def micro_batches(self) -> list[Batch]:
        rows, pad_id = self.workload.rows, self.workload.pad_id
        parts = split_rows(self.workload.lengths, self.layout, 1)
        return [collate(rows.__getitem__, part, self.layout, pad_id) for part in parts]

    def step(self) -> StepTimes:
        """One step as training does it. Raises DivergedError."""
        device, training = self.workload.device, self.workload.training
        started = now_s(device)
        batches = self.micro_batches()
        collated = now_s(device)
        if self.optimizer is None:
            for batch in batches:
                self.module(**batch.to(device).inputs).backward()
            computed = now_s(device)
        else:
            train_step(self._process, self.module, self.optimizer, batches, step=self.steps_done,
                       learning_rate=_LEARNING_RATE, seed=training.seed,
                       max_grad_norm=training.max_grad_norm, rule=self.rule)
            computed = self._process.computed_s
        updated = now_s(device) if self.optimizer is not None else computed
        self.steps_done += 1
        return StepTimes(now_s(device) - started, collated - started, computed - collated,
                         updated - computed)

    def first(self) -> First:
        """Loss and gradient without an update."""
        device = self.workload.device
        batches = self.micro_batches()
        outputs: list[Tensor] = []

        def note(module: Any, args: Any, output: Tensor) -> None:
            outputs.append(output)

        embeddings = _inner(self.model).get_input_embeddings()
        hook = embeddings.register_forward_hook(note) if self.optimizer is None else None
        self.model.eval()
        try:
            loss = 0.0
            squares = 0.0
            for batch in batches:
                part: Any = self.module(**batch.to(device).inputs)
                part.backward()
                loss += float(part.detach())
                squares += sum(float(t.grad.double().square().sum())
                               for t in outputs if t.grad is not None)
                outputs.clear()
        finally:
            self.model.train()
            if hook is not None:
                hook.remove()
        for p in self.trained:
            if p.grad is not None:
                squares += float(p.grad.double().square().sum())
                p.grad = None
        weight = sum(batch.loss_weight for batch in batches) or 1.0
        return First(loss / weight, squares**0.5 / weight, sum(b.tokens for b in batches),
                     sum(b.supervised_tokens for b in batches),
                     sum(b.computed_tokens for b in batches))

    def memory_bytes(self) -> int:
        """On CUDA the most that a step has allocated, with the weights, adapters and optimizer
        state of this side alone; it takes a step. Elsewhere the most that autograd keeps between a
        forward pass and its backward pass, parameters left out; nothing is updated."""
        device = self.workload.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            self.step()
            return torch.cuda.max_memory_allocated(device) - before + self.held_bytes()
        largest = 0
        for batch in self.micro_batches():
            with _watching_kept(self.model) as kept:
                loss = self.module(**batch.to(device).inputs)
                largest = max(largest, sum(kept.values()))
            loss.backward()
        for p in self.trained:
            p.grad = None
        return largest

    def held_bytes(self) -> int:
        """Weights, adapter and optimizer state."""
        tensors = held_tensors(self.model)
        if self.optimizer is not None:
            tensors += [value for state in self.optimizer.state.values()
                        for value in state.values() if isinstance(value, Tensor)]
        return storage_bytes([t for t in tensors if t.device.type == self.workload.device.type])


class _OneProcess(Strategy):
    """Notes when the gradients are there."""

    computed_s = 0.0

    def sum(self, tensor: Tensor) -> Tensor:
        self.computed_s = now_s(self.device)
        return tensor


def build_floor(workload: Workload) -> Side:
    model = _copy(workload)
    # The floor is free of padding whatever the recipe lays out.
    wanted = Decision("training.batching", "padding_free", "no padding is computed")
    packing = settle_packing(model, wanted, workload.attention)
    model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: output.requires_grad_(True))
    head = find_head(model)
    layout = Layout(packing.batching.value, workload.micro_batch_size, workload.row_tokens,
                    flat=packing.flat)
    return Side("floor", "the base alone: nothing is trained", workload, model.train(),
                None if isinstance(head, str) else head, layout, [packing.batching], trains=False)


def build_lorafit(workload: Workload, name: str = "lorafit", what: str = "lorafit train") -> Side:
    """Any adapter as `lorafit train` puts it on."""
    model = _copy(workload)
    packing = settle_packing(model, workload.batching, workload.attention,
                             hands_documents_on=not workload.adapter.row.calls_layers)
    adapted = _add(model, workload)
    fast = speed_up(adapted)
    layout = Layout(packing.batching.value, workload.micro_batch_size, workload.row_tokens,
                    flat=packing.flat)
    side = Side(name, what, workload, adapted, fast.head, layout,
                [packing.batching, *fast.decisions])
    setting = workload.training.activation_checkpointing
    if setting != "full":  # which is every side's
        side.decisions.append(settle_recomputation(
            side.module, setting, max(batch.computed_tokens for batch in side.micro_batches()),
            workload.device, device_memory_bytes(workload.device), may_run_layers_again=False))
    side.decisions += settle_offloading(adapted, workload.training.activation_offloading,
                                        workload.device)
    return side


def build_peft(workload: Workload) -> Side:
    """UserError for a method that peft does not have."""
    if workload.adapter.row.is_own:
        raise UserError(f"peft has no {workload.adapter.method}")
    model = _copy(workload)
    adapted = _add(model, workload)
    layout = Layout("padded", workload.micro_batch_size, workload.row_tokens)
    return Side("peft", "peft's own layers, padded, the model's logits", workload, adapted, None,
                layout, [])


def _copy(workload: Workload) -> Any:
    """The base for one side. Checkpoints are every side's, so that ratios show no recomputation."""
    model = twin(workload.base, _written_weights(workload))
    if workload.training.activation_checkpointing == "full":
        recompute_activations(model)
    return model


def _add(model: Any, workload: Workload) -> Any:
    """The model with the workload's adapter. UserError where that cannot be."""
    adapted = add_adapter(model, workload.adapter, workload.training.seed, workload.model,
                          total_steps=_TOTAL_STEPS)
    _own_what_is_trained(adapted, workload.base)
    return adapted


def full_adapter(base: Any) -> Adapter:
    """The weights of all linear layers but the head, which are those that LoRA adapts. (The word
    all-linear is for methods with adapters.)"""
    names = [weight.name for weight in weights_of(base)
             if weight.part in LINEAR and not weight.is_parameter]
    if not names:
        raise UserError("the base has no linear layers")
    return Adapter(method="full", target_modules=module_words(base, names))


def paca_adapter(adapter: Adapter) -> Adapter:
    """PaCA on the same layers at the same rank."""
    if adapter.rank is None:
        raise UserError(f"{adapter.method} has no rank to give PaCA")
    return Adapter(method="paca", rank=adapter.rank, target_modules=adapter.target_modules,
                   exclude_modules=adapter.exclude_modules, layers=adapter.layers)


def upper_adapter(adapter: Adapter, base: Any) -> Adapter:
    """The same on the upper half of the layers."""
    if "layers" not in adapter.row.keys:
        raise UserError(f"{adapter.method} is not put on layers")
    count = len(decoder_layers(base))
    return adapter.model_copy(update={"layers": f"last:{max(1, count // 2)}"})


def twin(base: Any, own: frozenset[str] = frozenset()) -> Any:
    """A model of its own with the same weights in memory, but for copies of those named in `own`.

    Parameters are new ones on the same memory, so that asking one for a gradient asks no other
    side's; those of a quantised base are the same objects, but in int8.
    """
    memo: dict[int, Any] = {id(buffer): buffer for buffer in base.buffers()}
    for name, parameter in base.named_parameters():
        data = parameter.detach()
        if parameter.is_floating_point() and type(parameter) is nn.Parameter:
            memo[id(parameter)] = nn.Parameter(data.clone() if name in own else data,
                                               requires_grad=False)
        elif hasattr(parameter, "CB"):
            # The first forward pass of an int8 layer takes the numbers out of its parameter.
            other: Any = torch.Tensor._make_subclass(type(parameter), data, False)
            other.__dict__.update(parameter.__dict__)
            memo[id(parameter)] = other
        else:
            memo[id(parameter)] = parameter
    return copy.deepcopy(base, memo)


def _written_weights(workload: Workload) -> frozenset[str]:
    """Parameters of the base that a method writes into without training them: PaCA's columns."""
    if workload.adapter.method != "paca":
        return frozenset()
    modules = [(name, workload.base.get_submodule(name))
               for name in matched_names(workload.base, workload.adapter)]
    return frozenset(f"{name}.{own}" for name, module in modules
                     for own, _ in module.named_parameters(recurse=False))


def _own_what_is_trained(model: nn.Module, base: nn.Module) -> None:
    """Weights of the base that are trained themselves get memory of their own."""
    shared = {p.untyped_storage().data_ptr() for p in base.parameters()}
    for p in model.parameters():
        if p.requires_grad and p.untyped_storage().data_ptr() in shared:
            p.data = p.data.clone()


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _watching_kept(model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd keeps, but for the model's own, by its address."""
    own = {t.untyped_storage().data_ptr() for t in held_tensors(model)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    unpack: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731
    with saved_tensors_hooks(pack, unpack):
        yield kept
