"""What a forward pass keeps for the backward pass, layer by layer, from shapes alone.

Counted is what lorafit's fast forms keep (`kernels/`), tensor by tensor, and what plain layers keep
where a method has no fast form. Only what a gradient flows through is kept: nothing below the
lowest trained layer.

Letters, in numbers a token: H width, Q and K of queries and of keys (heads times their width),
M inner width of an MLP, R ranks. Thin tensors (a rank wide, or one number a token) are float32.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lorafit.kernels.chunks import tokens_at_once
from lorafit.model.weights import Weight
from lorafit.plan.load import Load, is_fast
from lorafit.plan.shapes import Shapes
from lorafit.plan.trained import Trained
from lorafit.recipe.adapter import Adapter

_THIN = 4
_GATES = {"gate_proj", "up_proj", "gate_up_proj", "w1", "w3"}
_INS = {"q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn", "query_key_value"}


@dataclass(frozen=True)
class Kept:
    """Bytes of activations. layers: by decoder layer. around: of the embeddings, the last norm and
    the states that the loss starts from. logits: what a chunk of logits takes with its gradient.
    passing: the most that the backward pass of one layer takes besides."""

    layers: tuple[int, ...]
    around: int
    logits: int
    passing: int

    @property
    def total(self) -> int:
        return sum(self.layers) + self.around


@dataclass(frozen=True)
class _Layer:
    """A decoder layer. ranks: of its adapted weights by their last name. takes_gradient: whether
    its input does."""

    weights: Mapping[str, Weight]
    ranks: Mapping[str, int]
    takes_gradient: bool
    is_last: bool

    def rank(self, *names: str) -> int:
        return sum(rank for name, rank in self.ranks.items() if name in names)

    def adapts(self, names: set[str]) -> bool:
        return bool(names & self.ranks.keys())


class _Counter:
    """The formulas, for one base, one adapter and one load."""

    def __init__(self, shapes: Shapes, trained: Trained, section: Adapter, load: Load) -> None:
        self.sizes, self.section, self.load = shapes.sizes, section, load
        self.shapes = shapes
        self.full = section.method == "full"
        self.fast = is_fast(section, load.quantization)
        self.wide = load.number_bytes
        self.drops = bool(section.dropout) and self.fast
        self.selective = load.recomputation == "selective"
        sizes = self.sizes
        self.q, self.k = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        self.trains_head = self.full or any(weight.part == "head" for weight, _ in trained.adapted)
        names = " ".join(shapes.tensors)
        self.head_norms = ".q_norm." in names
        self.norms = max(2, len({key.rpartition(".")[0].rpartition(".")[2] for key in shapes.tensors
                                 if re.search(rf"{re.escape(shapes.stack.prefix)}\.0\.[^.]*norm"
                                              r"[^.]*\.weight$", key)}))

    # A layer.

    def layer(self, layer: _Layer, recomputation: str) -> int:
        attention = self.attention(layer)
        flows = layer.takes_gradient or attention > 0
        return attention + self.rest(layer, flows, recomputation)

    def norm(self) -> int:
        """A norm's input and one number a token; plain ones, whose weight is trained, keep what
        they normed too. On a CPU a 16-bit input is kept as float32."""
        each = _THIN if self.load.device == "cpu" else self.wide
        return (2 if self.full else 1) * self.sizes.hidden_size * each + _THIN

    def attention(self, layer: _Layer) -> int:
        ins = layer.adapts(_INS)
        if not (layer.takes_gradient or ins or layer.adapts({"o_proj", "dense", "c_proj"})):
            return 0
        per_token = self.norm() if layer.takes_gradient or self.full else 0
        out_adapted = bool(layer.ranks.keys() & {"o_proj", "dense"})
        if ins:
            per_token += self.given(self.sizes.hidden_size, layer.rank(*_INS))
            per_token += self.beside(layer, _INS)
        flows = layer.takes_gradient or ins
        # On a CPU keys are repeated for the queries that share them; a single one is only read so.
        repeats = self.load.device == "cpu" and 1 < self.sizes.kv_heads < self.sizes.heads
        if flows:
            if self.head_norms:
                per_token += (self.q + self.k) * self.wide + _THIN * (
                    self.sizes.heads + self.sizes.kv_heads)
            per_token += (self.q + 2 * (self.q if repeats else self.k)) * self.wide
            per_token += self.q * self.wide + self.scores()
        if out_adapted:
            # Documents are put together again, which a single kernel has no need of.
            joined = (self.load.batching != "padded" and self.load.device == "cpu") or not flows
            per_token += self.given(self.q, layer.rank("o_proj", "dense"),
                                    keeps=joined) + self.beside(layer, {"o_proj", "dense"})
        if self.norms > 2:  # one behind the block
            per_token += self.norm()
        # Gemma's norms multiply by one more than their weight, which is kept too.
        fixed = self.norms * self.sizes.hidden_size * self.wide \
            if self.sizes.model_type.startswith("gemma") and not self.full else 0
        # transformers' mask, as numbers, once a layer.
        if self.load.batching == "padded" and flows and self.load.rows > 1:
            fixed += self.load.tokens * self.load.longest_tokens * self.wide
        return per_token * self.load.tokens + fixed

    def scores(self) -> int:
        """A number a head, or, eager, a row of scores in float32 and in the model's dtype."""
        if self.load.attention != "eager":
            return _THIN * self.sizes.heads
        each = _THIN + (self.wide if self.wide < _THIN else 0)
        return each * self.sizes.heads * self.load.longest_tokens

    def rest(self, layer: _Layer, flows: bool, recomputation: str) -> int:
        """From the second norm on: an MLP, or a mixture."""
        fused = layer.weights.get("gate_up_proj")
        if fused is not None and fused.is_fused:
            return self.norm() * self.load.tokens + self.experts(layer)
        gates, downs = layer.adapts(_GATES), layer.adapts({"down_proj", "w2"})
        if not (flows or gates or downs):
            return 0
        # Nothing mixes tokens after the last layer's attention.
        shortcut = layer.is_last and recomputation != "full" and not self.full \
            and self.is_gated(layer)
        tokens = self.load.supervised_tokens if shortcut else self.load.tokens
        inner = self.sizes.intermediate_size
        per_token = 0
        if gates or (self.selective and self.is_gated(layer)):
            per_token += self.given(self.sizes.hidden_size, layer.rank(*_GATES))
            per_token += self.beside(layer, _GATES)
        if self.is_gated(layer):
            per_token += 0 if self.selective else 2 * inner * self.wide
        else:
            per_token += (4 if downs else 3) * inner * self.wide
        if downs:
            per_token += self.given(inner, layer.rank("down_proj", "w2"),
                                    keeps=False) + self.beside(layer, {"down_proj", "w2"})
        if shortcut:  # put back among all tokens
            per_token += self.sizes.hidden_size * self.wide
        norms = (self.norm() if flows else 0) + (self.norm() if self.norms > 2 else 0)
        return norms * self.load.tokens + per_token * tokens

    def is_gated(self, layer: _Layer) -> bool:
        """Whether the MLP is one function: adapters, where it has any, are fast ones."""
        adapted = layer.adapts(_GATES | {"down_proj", "w2"})
        return {"gate_proj", "up_proj", "down_proj"} <= layer.weights.keys() and (
            self.fast or not adapted)

    def experts(self, layer: _Layer) -> int:
        """Of a mixture in its fast form: its input, where tokens are sent, what gates are given."""
        sizes, load = self.sizes, self.load
        chosen = sizes.active_experts or sizes.experts
        ranks = [rank for name, rank in layer.ranks.items()
                 if name in ("gate_up_proj", "down_proj")]
        per_pair = 16 + _THIN + _THIN * sum(ranks)
        if not self.selective:
            per_pair += 2 * sizes.expert_size * self.wide
        keeps_x = layer.adapts({"gate_up_proj"}) or self.selective
        router = 3 * _THIN * sizes.experts
        per_token = chosen * per_pair + router + (sizes.hidden_size * self.wide if keeps_x else 0)
        return per_token * load.tokens

    def given(self, width: int, rank: int, keeps: bool = True) -> int:
        """The input of an adapted layer, or of several that share it, and its thin product; where
        inputs are dropped, a byte for each says which."""
        kept = width * self.wide if keeps else 0
        if self.full:
            return kept
        if not self.fast and self.wide < _THIN:
            kept += width * _THIN  # peft converts it
        return kept + _THIN * rank + (width if self.drops else 0)

    def beside(self, layer: _Layer, names: set[str]) -> int:
        """DoRA's: the base's output and the update's."""
        if not self.section.dora:
            return 0
        return sum(2 * layer.weights[name].shape[-2] * self.wide
                   for name in names & layer.ranks.keys() if name in layer.weights)

    # What the backward pass takes on its way.

    def passing(self) -> int:
        sizes, tokens = self.sizes, self.load.tokens
        stream = 2 * sizes.hidden_size
        if sizes.experts:
            pairs = sizes.active_experts or sizes.experts
            inner = pairs * (2 * sizes.hidden_size + (8 if self.selective else 6)
                             * sizes.expert_size)
        else:
            inner = (5 if self.selective else 3) * sizes.intermediate_size
        attention = 4 * self.q + 2 * sizes.hidden_size
        weight = 0
        if self.load.quantization in ("nf4", "fp4", "int8") or self.section.dora:
            linear = [weight.shape[-1] * weight.shape[-2] for weight in self.shapes.weights
                      if weight.part in ("attention", "mlp")]
            weight = max(linear, default=0) * (3 * _THIN if self.section.dora else self.wide)
        return (stream + max(inner, attention)) * tokens * self.wide + weight

    def logits(self) -> int:
        """A chunk: raw, as float32, and the gradient; the softmax overwrites them in float32."""
        vocabulary = self.sizes.vocabulary
        tokens = min(tokens_at_once(vocabulary, self.load.device),
                     max(1, self.load.supervised_tokens))
        if self.trains_head:
            each = 3 * _THIN
        else:
            each = _THIN if self.wide == _THIN else 2 * self.wide + _THIN
        return each * vocabulary * tokens

    def around(self) -> int:
        """Embeddings to loss: angles, ids, the last norm, the gradient of the states with a loss;
        the gradient of a head that is trained."""
        sizes, load = self.sizes, self.load
        states = sizes.hidden_size * self.wide
        total = (self.norm() + 2 * sizes.head_dim * self.wide) * load.tokens
        total += states * load.supervised_tokens
        if self.trains_head:
            total += 2 * states * load.supervised_tokens
        if self.full:
            total += _THIN * sizes.vocabulary * sizes.hidden_size
        return total


def kept(shapes: Shapes, trained: Trained, section: Adapter, load: Load) -> Kept:
    """Bytes that a micro-batch keeps, on the device that computes it."""
    counter = _Counter(shapes, trained, section, load)
    layers = [_layer(shapes, trained, number, counter) for number in range(shapes.sizes.layers)]
    whole = [counter.layer(layer, load.recomputation) if layer is not None else 0
             for layer in layers]
    width = shapes.sizes.hidden_size * load.number_bytes
    passing = counter.passing()
    if load.recomputation == "full":
        passing += max(whole, default=0)
        whole = [width * load.tokens if size else 0 for size in whole]
    return Kept(tuple(whole), counter.around(), counter.logits(), passing)


def _layer(shapes: Shapes, trained: Trained, number: int, counter: _Counter) -> _Layer | None:
    """A layer that something is kept of; None below the lowest trained one."""
    if number < trained.lowest_layer:
        return None
    start = f"{shapes.stack.prefix}.{number}."

    def own(pairs: list[tuple[Weight, int]]) -> list[tuple[str, Weight, int]]:
        return [(weight.label.rpartition(".")[2], weight, rank) for weight, rank in pairs
                if weight.name.startswith(start)]

    every = own([(weight, 0) for weight in shapes.weights])
    adapted = own(list(trained.adapted))
    below = number > trained.lowest_layer or (counter.full and trained.lowest_layer == 0)
    return _Layer({name: weight for name, weight, _ in every},
                  {name: rank for name, _, rank in adapted}, below,
                  number == shapes.sizes.layers - 1)
