"""What there is to compute in a step, counted: multiplications, numbers moved, calls of layers.

FLOPs a token of a matrix with I inputs and O outputs: 2·I·O forward, 2·I·O backward to its inputs,
and 2·I·O more for the gradient of a weight that is trained itself. LoRA of rank R on it adds
2·R·(I+O) three times over, so LoRA takes 2/3 + 2R/N of full fine-tuning on matrices of N × N
(the count of bench/arithmetic.py on a model that is built). Attention over a document of n tokens:
two products of n²/2 scores (causal) for each head's width forward; backward two for the inputs of
each, and the scores once more.
"""

import math
import re
from dataclasses import dataclass

from lorafit.model.weights import LINEAR, Stack, Weight
from lorafit.plan.shapes import Shapes
from lorafit.plan.trained import Trained

# Forward, and backward to queries, keys and values with the scores computed again.
_ATTENTION_PASSES = 1 + 2.5


@dataclass(frozen=True)
class Rows:
    """What a step computes, over all of its micro-batches.

    tokens: with padding. supervised_tokens: those with a loss. squares: sum of the squares of the
    lengths over which attention is computed. micro_batches: how many.
    """

    tokens: float
    supervised_tokens: float
    squares: float
    micro_batches: float


@dataclass(frozen=True)
class Work:
    """Of one step. flops: of matrix products. numbers: that go in and out of them, a measure for
    all that is computed number by number. calls: of decoder layers. stored_numbers: weights that
    are unpacked from a quantised form. updated: parameters of the optimizer."""

    flops: float
    numbers: float
    calls: float
    stored_numbers: float
    updated: float


def work_of(shapes: Shapes, trained: Trained, rows: Rows, *, recomputation: str = "none",
            quantised: bool = False) -> Work:
    """Of a step that trains `trained`; `recomputation` as training.activation_checkpointing."""
    adapted = {weight.label: rank for weight, rank in trained.adapted}
    # As in an evaluation: all lies below the lowest layer that is trained.
    is_forward = trained.lowest_layer >= shapes.sizes.layers
    flops = numbers = stored = 0.0
    for weight in shapes.weights:
        if weight.part == "embeddings":
            continue
        if weight.part == "head":
            # Forward, and backward to the hidden states, for tokens with a loss.
            is_trained = trained.method == "full" and weight.label in adapted
            passes = 2 if is_forward else 6 if is_trained else 4
            out, into = weight.shape
            flops += rows.supervised_tokens * passes * out * into
            numbers += rows.supervised_tokens * (out + into)
            continue
        out, into = weight.shape[-2:]
        tokens = rows.tokens * _share(weight, shapes)
        layer = layer_of(weight.name, shapes.stack)
        is_below = layer is not None and layer < trained.lowest_layer
        passes = 2 if is_below else 4
        again = _again(weight, recomputation)
        rank = adapted.get(weight.label, 0)
        flops += tokens * out * into * (passes + again)
        if trained.method == "full":
            flops += tokens * 2 * out * into if rank else 0
        elif rank:
            flops += tokens * rank * (out + into) * ((2 if is_below else 6) + again)
        numbers += tokens * (out + into) * (passes + again) / 4
        if quantised and weight.part in LINEAR:
            stored += math.prod(weight.shape) * rows.micro_batches * (passes + again) / 2
    sizes = shapes.sizes
    below = trained.lowest_layer / max(1, sizes.layers)
    passes_attention = (1 - below) * (_ATTENTION_PASSES + (recomputation == "full")) + below
    flops += sizes.layers * rows.squares * 2 * sizes.heads * sizes.head_dim * passes_attention
    calls = sizes.layers * rows.micro_batches * (
        below + (1 - below) * (2 + (recomputation == "full")))
    return Work(flops, numbers, calls, stored, trained.parameters or 0.0)


def full_fine_tuning(shapes: Shapes) -> Trained:
    """Every weight trained itself, for comparison."""
    return Trained("full", shapes.parameters, tuple((weight, 1) for weight in shapes.weights), 0,
                   shapes.parameters, 0)


def layer_of(name: str, stack: Stack) -> int | None:
    """The decoder layer that a name lies in; None outside of all."""
    match = re.match(rf"{re.escape(stack.prefix)}\.(\d+)\.", name)
    return None if match is None else int(match[1])


def _share(weight: Weight, shapes: Shapes) -> float:
    """Through how many of a weight's experts a token goes; below 1 where each is a weight."""
    if weight.part != "experts":
        return 1.0
    active = shapes.stack.active_experts or 1
    return float(active) if weight.is_fused else active / max(1, shapes.sizes.experts)


def _again(weight: Weight, recomputation: str) -> int:
    """Further forward passes of a weight that the backward pass takes: 2 FLOPs each."""
    if recomputation == "full":
        return 2
    is_inner = weight.part in ("mlp", "experts") and re.search(
        r"(gate|up|gate_up)_proj$|gate_up_proj", weight.label) is not None
    return 2 if recomputation == "selective" and is_inner else 0
