"""Whether sequences that share a row are strangers to each other, measured on the loaded model.

No configuration says so. Attention is kept within a sequence by position_ids that start again at
0, if an architecture hands them to its masks; a recurrent state or a convolution runs on into the
next sequence; code that comes with a model may do anything.
"""

import inspect
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorafit.errors import UserError
from lorafit.kernels.packed_attention import Documents
from lorafit.model.fast.attention import NAME, back_to_sdpa, use_packed_attention
from lorafit.model.loss import model_inputs
from lorafit.recipe.auto import IN_RECIPE, Decision

# Tokens of a sequence whose neighbour is exchanged, and of that neighbour before it. Short, so
# that what leaks in weighs much; different, so that rows end in padding.
_PAIRS = ((6, 7), (4, 5), (7, 6))

# Measured with random weights, 2 to 48 layers, on a CPU. Isolated: influence 0 to the bit, 1e-6
# with a mixture of experts, in float32, bfloat16 and float16, nf4 or not. The weakest leak was
# 2.4e-2 (Falcon-H1, whose state is one of two branches), others 0.2 to 1.2.
INFLUENCE_LIMIT = 1e-2
# int8 picks the columns it keeps in 16 bits by all tokens of a micro-batch, padded or not: 5e-3 on
# 4 layers, 0.11 on 48.
INT8_INFLUENCE_LIMIT = 0.2
# Rounding alone: 3e-6 in float32, 6e-3 in float16, 4e-2 in bfloat16, 0.12 with int8.
ERROR_LIMIT = 0.3
FLOAT32_ERROR_LIMIT = 1e-3


@dataclass(frozen=True)
class Crossing:
    """How much sequences of a row have to do with each other; 0 for nothing, 1 for everything.

    influence: change of a sequence's logits when another one stands before it. error: their
    difference from those of the sequence on its own. Both are norms relative to the logits' own.
    """

    influence: float
    error: float
    influence_limit: float = INFLUENCE_LIMIT
    error_limit: float = ERROR_LIMIT

    @property
    def is_isolated(self) -> bool:
        return self.influence <= self.influence_limit and self.error <= self.error_limit


@dataclass(frozen=True)
class Packing:
    """How sequences are laid out, and whether those of a micro-batch stand in one row (`flat`)."""

    batching: Decision
    flat: bool


def settle_packing(model: Any, batching: Decision, attention: str, *,
                   hands_documents_on: bool = True) -> Packing:
    """The layout that the loaded model computes right, with the attention that is fastest for it.

    A model with SDPA gets attention by sequence, where it hands on what that needs. Where it does
    not, or the adapter to come does not (`hands_documents_on`), a layout that the recipe asks for
    is computed with masks. UserError when the model cannot
    compute it at all.
    """
    is_flash = attention.startswith("flash")
    if batching.value == "padded":
        return Packing(batching, is_flash)
    if attention == "sdpa" and hands_documents_on:
        use_packed_attention(model)
        if measure_crossing(model, flat=True).is_isolated:
            return Packing(batching, True)
        back_to_sdpa(model)
    return Packing(ensure_isolated(model, batching, flat=is_flash), is_flash)


def ensure_isolated(model: Any, batching: Decision, *, flat: bool) -> Decision:
    """The decision, if the model keeps sequences of a row apart; otherwise padded batches.

    `flat`: micro-batches have a single row. UserError when the recipe itself asks for a layout
    that the model cannot compute.
    """
    if batching.value == "padded":
        return batching
    found = measure_crossing(model, flat=flat)
    if found.is_isolated:
        return batching
    reason = f"sequences that share a row influence each other in {model.config.model_type}"
    largest = max(found.influence, found.error)
    if math.isfinite(largest):
        reason += f" (logits change by {largest:.1%})"
    if batching.reason == IN_RECIPE:
        raise UserError(reason, f"{batching.key}: {batching.value}",
                        f"--set {batching.key}=padded")
    return Decision(batching.key, "padded", reason)


@torch.no_grad()
def measure_crossing(model: Any, *, flat: bool) -> Crossing:
    """Three forward passes over some thirty tokens. Draws nothing from torch's generators.

    The influence is exact where arithmetic on one token does not depend on the others, since
    tensors of the same shape are compared: it shows a leak that rounding to 16 bits would hide.
    The error shows positions that do not start again. Of the pairs the median counts: rounding can
    send one token to another expert of a mixture, a leak shows in all of them.
    """
    if not _takes_positions(model):
        return Crossing(float("inf"), float("inf"))
    was_training = model.training
    model.eval()
    random = np.random.Generator(np.random.Philox(key=0))
    vocabulary = model.config.get_text_config().vocab_size
    before, instead, watched = (
        [torch.from_numpy(random.integers(0, vocabulary, pair[k])) for pair in _PAIRS]
        for k in (0, 0, 1))
    try:
        beside = _logits_in_rows(model, before, watched, flat)
        exchanged = _logits_in_rows(model, instead, watched, flat)
        alone = _logits_alone(model, watched)
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, RuntimeError, ValueError, TypeError):
        if model.config._attn_implementation != NAME:
            raise
        # Attention by sequence lacks what the architecture asks of it, or is not called by it.
        return Crossing(float("inf"), float("inf"))
    finally:
        model.train(was_training)
    return Crossing(_difference(exchanged, beside), _difference(beside, alone),
                    INT8_INFLUENCE_LIMIT if _is_int8(model) else INFLUENCE_LIMIT,
                    error_limit(model))


def error_limit(model: Any) -> float:
    """The largest relative difference of logits that rounding explains."""
    is_exact = model.dtype == torch.float32 and not _is_int8(model)
    return FLOAT32_ERROR_LIMIT if is_exact else ERROR_LIMIT


def _is_int8(model: Any) -> bool:
    return bool(getattr(model, "is_loaded_in_8bit", False))


def _logits_in_rows(model: Any, before: list[Tensor], watched: list[Tensor],
                    flat: bool) -> list[Tensor]:
    """Logits of each watched sequence, (length, vocabulary), with another one before it."""
    device = model.get_input_embeddings().weight.device
    pairs = [torch.cat(pair) for pair in zip(before, watched, strict=True)]
    positions = [torch.cat([torch.arange(len(one)), torch.arange(len(other))])
                 for one, other in zip(before, watched, strict=True)]
    if flat:
        input_ids, position_ids = torch.cat(pairs)[None], torch.cat(positions)[None]
    else:
        width = 1 + max(map(len, pairs))  # every row ends in padding, a sequence of its own
        input_ids = torch.stack([torch.cat([pair, pair.new_zeros(width - len(pair))])
                                 for pair in pairs])
        position_ids = torch.stack([torch.cat([p, torch.arange(width - len(p))])
                                    for p in positions])
    documents = None
    if flat:
        lengths = [len(part) for pair in zip(before, watched, strict=True) for part in pair]
        bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        documents = Documents(tuple(lengths), torch.from_numpy(bounds).to(device))
    inputs = model_inputs(model, input_ids.to(device), None, position_ids.to(device), documents)
    logits = model(**inputs, use_cache=False).logits
    rows = logits[0].split([len(pair) for pair in pairs]) if flat else logits
    return [row[len(one) : len(one) + len(other)]
            for row, one, other in zip(rows, before, watched, strict=True)]


def _logits_alone(model: Any, watched: list[Tensor]) -> list[Tensor]:
    device = model.get_input_embeddings().weight.device
    input_ids = torch.nn.utils.rnn.pad_sequence(watched, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in watched],
                                           batch_first=True)
    logits = model(input_ids=input_ids.to(device), attention_mask=mask.to(device),
                   use_cache=False).logits
    return [row[: len(ids)] for row, ids in zip(logits, watched, strict=True)]


def _difference(got: list[Tensor], wanted: list[Tensor]) -> float:
    """Median over sequences of |got − wanted| / |wanted|, logits less their mean."""
    relative = []
    for a, b in zip(got, wanted, strict=True):
        a, b = (x.float() - x.float().mean(dim=-1, keepdim=True) for x in (a, b))
        relative.append((a - b).norm() / b.norm())
    return float(torch.stack(relative).median())


def _takes_positions(model: Any) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = inspect.signature(inner.forward).parameters.values()
    return any(p.name == "position_ids" or p.kind is p.VAR_KEYWORD for p in parameters)
