"""What all sides of a measurement train: one base, one adapter, the rows of one step."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lorafit.bench.machine import available_bytes
from lorafit.bench.request import Request
from lorafit.bench.shapes import SHAPES, Shape
from lorafit.data.tokens import Tokens
from lorafit.errors import UserError
from lorafit.model import base as bases
from lorafit.model.device import find_device
from lorafit.model.random_base import random_base
from lorafit.recipe import auto
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.auto import Decision
from lorafit.recipe.schema import Recipe, Training
from lorafit.train.prepare import prepare


@dataclass(frozen=True)
class Workload:
    """A base without adapter on its device, and everything that a step needs.

    model: what it is called. rows: of one optimizer step. batching: as decided, before the loaded
    model was asked whether it keeps sequences apart. row_tokens: length of a packed row.
    """

    model: str
    base: Any
    adapter: Adapter
    training: Training
    rows: Sequence[Tokens]
    batching: Decision
    attention: str
    micro_batch_size: int
    row_tokens: int
    pad_id: int
    device: torch.device
    dtype: str
    quantization: str
    decisions: list[Decision] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self.rows])

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def supervised_tokens(self) -> int:
        return sum(row.supervised_tokens for row in self.rows)


def of_request(request: Request, shape: Shape | None = None, base: Any = None) -> Workload:
    """Random weights and random rows. `shape` stands in for the one that the request names, `base`
    for weights of that shape that are there already.

    UserError when the weights do not fit into memory.
    """
    from transformers import LlamaConfig

    sizes = shape or SHAPES[request.shape]
    name = request.shape if shape is None else "llama of chosen sizes"
    device, facts = find_device()
    dtype = auto.dtype(request.dtype, facts)
    if request.dtype != "auto":
        dtype = dataclasses.replace(dtype, reason="asked for")
    rows = draw_rows(request, sizes.vocabulary)
    longest = max(len(row) for row in rows)
    config = LlamaConfig(
        hidden_size=sizes.hidden, num_hidden_layers=sizes.layers, intermediate_size=sizes.inner,
        num_attention_heads=sizes.heads, num_key_value_heads=sizes.key_heads,
        vocab_size=sizes.vocabulary, tie_word_embeddings=sizes.tied,
        max_position_embeddings=max(longest, 131_072), use_cache=False,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )
    if base is None:
        _refuse_too_large(name, config, dtype.value, device)
        base = random_base(config, dtype.value, "sdpa", device, quantization=request.quantization)
    batching = auto.batching("auto", "sdpa", takes_documents=True)
    mean = sum(map(len, rows)) / len(rows)
    micro = auto.micro_batch_size(
        "auto", request.batch_size, 1,
        auto.row_tokens(batching.value, longest, mean, longest, facts), sizes.vocabulary,
        sizes.hidden, facts)
    if request.micro_tokens is not None:
        fitting = min(request.batch_size, max(1, request.micro_tokens // longest))
        micro = Decision(micro.key, fitting, f"rows of up to {longest} tokens, at most "
                         f"{request.micro_tokens} tokens at once")
    return Workload(
        name, base, Adapter(rank=request.rank),
        Training(batch_size=request.batch_size,
                 activation_checkpointing="full" if request.checkpointing else "none"),
        rows, batching, "sdpa", micro.value, longest, 0, device, dtype.value, request.quantization,
        [dtype, batching, micro], ["random weights, random rows"],
    )


def of_recipe(recipe: Recipe, name: str,
              watch: Callable[[str, int], None] = lambda source, rows: None) -> Workload:
    """A recipe's base, adapter, layout and the rows of its first step.

    Reads what `lorafit check` reads, and the weights. Writes nothing to the output directory.
    """
    _refuse_other_start(recipe)
    prepared = prepare(recipe, 1, watch=watch)
    dtype, attention = prepared.decided("model.dtype"), prepared.decided("model.attention")
    base = bases.load_base(recipe.model, dtype, attention, prepared.device)
    base.config.use_cache = False
    adapter, remarks = recipe.adapter, list(prepared.remarks)
    if adapter.init not in ("default", "gaussian", "orthogonal"):
        remarks.append(f"adapter.init {adapter.init}: measured with the default start, which "
                       "costs the same")
        adapter = adapter.model_copy(update={"init": "default"})
    examples = prepared.feed.step(0)
    keys = ("model.dtype", "model.attention", "training.batching", "training.micro_batch_size")
    return Workload(
        recipe.model.base, base, adapter, recipe.training,
        [examples.tokens(i) for i in range(len(examples))],
        prepared.decision("training.batching"), attention, prepared.plan.micro_batch_size,
        recipe.data.max_length_tokens, prepared.tokenizer.pad_token_id or 0, prepared.device, dtype,
        recipe.model.quantization,
        [decision for decision in prepared.decisions if decision.key in keys],
        [f"rows of the first step of {name}", *remarks],
    )


def draw_rows(request: Request, vocabulary: int) -> list[Tokens]:
    """Random rows, the same for the same request."""
    random = np.random.Generator(np.random.Philox(key=0))
    longest_share = 1.0 if request.even else 1.5
    shares = random.uniform(2 - longest_share, longest_share, request.batch_size)
    rows = []
    for share in shares:
        length = max(2, round(request.length * share))
        ids = random.integers(0, vocabulary, length).astype(np.int32)
        first_trained = length - min(length - 1, max(1, round(request.supervised * length)))
        rows.append(Tokens(ids, np.arange(length) >= first_trained))
    return rows


def with_adapter(workload: Workload, adapter: Adapter) -> Workload:
    """The same with another adapter. LoRA+ is LoRA's alone."""
    training = workload.training
    if adapter.method != "lora":
        training = training.model_copy(update={"lora_plus_ratio": 1.0})
    return dataclasses.replace(workload, adapter=adapter, training=training)


def _refuse_other_start(recipe: Recipe) -> None:
    """The sides are known to compute the same by their first losses."""
    if elsewhere := recipe.adapter.row.starts_elsewhere:
        raise UserError(f"the sides are compared by their first loss, and {recipe.adapter.method} "
                        f"does not start as the base: {elsewhere}", "adapter.method",
                        "measure another method, for example --set adapter.method=lora")


def _refuse_too_large(name: str, config: Any, dtype: str, device: torch.device) -> None:
    weights = sum(p.numel() for p in bases.meta_model(config).parameters())
    needed = weights * bases.TORCH_DTYPES[dtype].itemsize
    free = available_bytes(device)
    if free is not None and needed > free:
        raise UserError(
            f"its weights take {needed / 1e9:.1f} GB in {dtype}, and {free / 1e9:.1f} GB are free",
            f"--shape {name}", "choose a smaller shape, or --dtype bfloat16")
