"""A model computed in slices by several ranks, beside itself alone."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import saved_tensors_hooks

from lorafit.data.batches import Batch, collate
from lorafit.data.packing import Layout, MicroBatch
from lorafit.data.slices import sliced
from lorafit.data.tokens import Tokens
from lorafit.kernels.ulysses import Slice
from lorafit.model.adapters.add import add_adapter
from lorafit.model.base import TINY
from lorafit.model.context import measure_slices
from lorafit.model.fast.attention import use_packed_attention
from lorafit.model.fast.proof import stirred
from lorafit.model.fast.speed_up import speed_up
from lorafit.model.loss import SummedLoss
from lorafit.recipe.adapter import Adapter


@dataclass(frozen=True)
class Case:
    """changes: to the shrunken configuration. adapter: keys of the recipe. lengths: of the row's
    documents. trained_from: the first token of the row that may have a loss."""

    model_type: str
    changes: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)
    lengths: tuple[int, ...] = (9, 2, 14, 6)  # 31: divided by no number of ranks
    is_fast: bool = False  # in float32, else in float64
    trained_from: int = 0

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.is_fast else torch.float64


@dataclass(frozen=True)
class Found:
    """loss, gradients: relative differences from the whole, the largest of a trained weight.
    proof: what `measure_slices` gives. kept: bytes that the backward pass needs, beside the
    whole's. counts: supervised tokens, their weight and tokens, less the whole's."""

    loss: float
    gradients: float
    proof: float
    kept: float
    counts: tuple[float, ...]


def slices_beside_whole(case: Case) -> Found:
    """Losses, gradients and counts of a row, in slices and on this rank alone."""
    own = Slice(torch.distributed.get_rank(), torch.distributed.get_world_size(),
                torch.distributed.group.WORLD)
    adapted = model_of(case)
    module = SummedLoss(adapted)
    if case.is_fast:
        module.head = speed_up(adapted).head
        assert module.head is not None
    row = batch_of(case)
    mine = sliced(row, own)
    wanted_loss, wanted, kept_whole = _computed(module, row)
    loss, gradients, kept = _computed(module, mine)
    for tensor in (loss, *gradients.values()):
        torch.distributed.all_reduce(tensor)
    counts = torch.tensor([(each.supervised_tokens, each.loss_weight, each.tokens)
                           for each in (mine, row)], dtype=torch.float64)
    mine_counts = counts[0].clone()
    torch.distributed.all_reduce(mine_counts)
    with stirred(adapted):
        proof = measure_slices(adapted, own)
    # A weight whose gradient is zero but for rounding is compared by the size of the others.
    least = 1e-6 * max(float(gradient.norm()) for gradient in wanted.values())
    return Found(
        float((loss - wanted_loss).abs() / wanted_loss),
        max(float((gradients[name] - wanted[name]).norm() / wanted[name].norm().clamp_min(least))
            for name in wanted),
        proof, kept / kept_whole, tuple((mine_counts - counts[1]).tolist()))


def mixed_outside_attention() -> float:
    """What the proof finds where a layer takes something of each token's neighbour."""
    own = Slice(torch.distributed.get_rank(), torch.distributed.get_world_size(),
                torch.distributed.group.WORLD)
    adapted = model_of(Case("llama"))

    def mix(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        neighbour = torch.cat([torch.zeros_like(output[:, :1]), output[:, :-1]], dim=1)
        return output + 0.3 * neighbour

    adapted.get_base_model().model.layers[-1].mlp.register_forward_hook(mix)
    return measure_slices(adapted, own)


def model_of(case: Case) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from lorafit.smoke import shrink

    config = AutoConfig.for_model(case.model_type)
    shrink(config, AutoTokenizer.from_pretrained(TINY))
    for key, value in case.changes.items():
        setattr(config, key, value)
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_config(config, dtype=case.dtype,
                                            attn_implementation="sdpa")
    base.config.use_cache = False
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # errors show in logits that are not near zero
    adapted = add_adapter(base, Adapter.model_validate({"rank": 4, "alpha": 8, **case.adapter}),
                          0, str(TINY), total_steps=1).to(case.dtype)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    use_packed_attention(adapted.get_base_model())
    return adapted.train()


def batch_of(case: Case) -> Batch:
    random = np.random.Generator(np.random.Philox(key=5))
    ends = np.cumsum(case.lengths)
    rows = [Tokens(random.integers(3, 4000, length).astype(np.int32),
                   (random.random(length) < 0.6)
                   & (np.arange(end - length, end) >= case.trained_from),
                   random.choice(np.array([0.5, 1, 2], dtype=np.float32), length))
            for length, end in zip(case.lengths, ends, strict=True)]
    return collate(rows.__getitem__, MicroBatch((tuple(range(len(rows))),)),
                   Layout("padding_free", 9, 64, flat=True), 0)


def _computed(module: SummedLoss, batch: Batch
              ) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Loss, gradients by name, and bytes kept for the backward pass."""
    own = {p.untyped_storage()._cdata for p in module.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = module(**batch.inputs)
    loss.backward()
    gradients = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            gradients[name] = (torch.zeros_like(parameter) if parameter.grad is None
                               else parameter.grad)
            parameter.grad = None
    return loss.detach().double(), gradients, sum(kept.values())
