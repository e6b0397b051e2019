"""Training the upper layers alone: time and memory of a step beside those of all layers.

    python scripts/benchmark_upper_layers.py [--layers 8] [--width 256] [--methods lora,paca,full]

A Llama of random weights is trained on the same tokens with all of its layers, the upper half, the
upper quarter and so on; embeddings and output head stay frozen throughout. The sides take turns,
one step each, so that what slows the machine down slows all of them: a step's CPU time is divided
by that of the whole model's step of the same turn. Memory is what autograd keeps between forward
and backward pass, parameters left out. Beside the time stands what counting multiplications
predicts. All sides must see the same tokens, start from the same loss and get a gradient.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, LlamaConfig

from lorafit.model.adapters.add import add_adapter
from lorafit.model.loss import summed_cross_entropy
from lorafit.recipe.adapter import Adapter


@dataclass(frozen=True)
class Shape:
    """Sizes of the model and of a step. rank: of lora and paca."""

    layers: int
    width: int
    vocabulary: int
    rows: int
    length: int
    rank: int

    @property
    def inner(self) -> int:
        return self.width * 5 // 2

    @property
    def linear(self) -> list[tuple[int, int]]:
        """(out, in) of a layer's weights; keys and values are as wide as queries."""
        return [*[(self.width, self.width)] * 4, *[(self.inner, self.width)] * 2,
                (self.width, self.inner)]


class Side:
    """A model of which the upper `trained` layers are trained."""

    def __init__(self, shape: Shape, method: str, trained: int) -> None:
        self.trained = trained
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=shape.width, intermediate_size=shape.inner,
            num_hidden_layers=shape.layers, num_attention_heads=shape.width // 64,
            vocab_size=shape.vocabulary, tie_word_embeddings=False, use_cache=False,
        )
        base = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        rank = {} if method == "full" else {"rank": shape.rank}
        words = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
                                    "up_proj", "down_proj"]}
        section = Adapter(method=method, layers=f"last:{trained}", **rank, **words)
        self.model = add_adapter(base, section, 0, "benchmark")
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, fused=True)
        self.ids = torch.randint(shape.vocabulary, (shape.rows, shape.length),
                                 generator=torch.Generator().manual_seed(1))
        self.seconds: list[float] = []

    def loss(self) -> torch.Tensor:
        return summed_cross_entropy(self.model, self.ids, torch.ones_like(self.ids), self.ids)

    def first_step(self) -> tuple[float, int]:
        """The loss of the fresh adapter, and the bytes kept for the backward pass."""
        own = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in self.parameters if p.grad is not None]).norm()
        assert torch.isfinite(norm), "the gradient is not finite"
        assert norm > 0, "nothing was trained"
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach()), sum(kept.values())

    def step(self) -> None:
        started = time.process_time()
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(time.process_time() - started)


def multiplications(shape: Shape, method: str, trained: int) -> float:
    """Of a step, per token. Norms, softmax and the optimizer are left out.

    Forward: every weight once, and 2·T·width for attention scores and their use. Backward to
    activations: the same weights again, attention twice, from the head down to the lowest trained
    layer, whose queries, keys and values need no gradient of what they read. Weights: by method.
    """
    weights = sum(out * into for out, into in shape.linear)
    attention = 2 * shape.length * shape.width
    head = shape.vocabulary * shape.width
    forward = shape.layers * (weights + attention) + head
    backward = head + trained * (weights + 2 * attention) - 3 * shape.width**2
    of_weights = {
        "lora": 3 * shape.rank * sum(out + into for out, into in shape.linear),
        "paca": shape.rank * sum(out for out, _ in shape.linear),
        "full": weights,
    }[method]
    return forward + backward + trained * of_weights


def compare(shape: Shape, method: str, turns: int) -> None:
    counts = [shape.layers]
    while counts[-1] > 1 and len(counts) < 4:
        counts.append(counts[-1] // 2)
    sides = [Side(shape, method, trained) for trained in counts]
    assert all(torch.equal(side.ids, sides[0].ids) for side in sides), "the sides' tokens differ"
    first = [side.first_step() for side in sides]
    assert all(abs(loss / first[0][0] - 1) < 1e-6 for loss, _ in first), "the losses differ"
    for turn in range(turns):
        for side in sides[turn % len(sides):] + sides[:turn % len(sides)]:
            side.step()
    whole = multiplications(shape, method, shape.layers)
    for side, (_, kept) in zip(sides, first, strict=True):
        ratios = [own / other for own, other in zip(side.seconds, sides[0].seconds, strict=True)]
        print(f"{method:<6}{side.trained:>4} of {shape.layers}"
              f"{1000 * statistics.median(side.seconds):>9.0f} ms"
              f"{min(ratios):>9.2f}{statistics.median(ratios):>6.2f}{max(ratios):>6.2f}"
              f"{multiplications(shape, method, side.trained) / whole:>12.2f}"
              f"{kept / 2**20:>12.1f}{kept / first[0][1]:>7.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments: dict[str, Any] = {"layers": 8, "width": 256, "vocabulary": 2048, "rows": 2,
                                 "length": 256, "rank": 16, "turns": 9}
    for name, default in arguments.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--methods", default="lora,paca,full")
    given = vars(parser.parse_args())
    methods, turns = given.pop("methods").split(","), given.pop("turns")
    shape = Shape(**given)
    print(f"{shape}; {torch.get_num_threads()} threads; {turns} turns")
    print("method  layers  median step    time: min median max  predicted   kept MiB   part")
    for method in methods:
        compare(shape, method, turns)


if __name__ == "__main__":
    main()
