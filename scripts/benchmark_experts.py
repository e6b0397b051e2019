"""What a step on a mixture of experts costs: its experts in the fast form, and as peft has them.

    python scripts/benchmark_experts.py [--experts 32] [--active 4] [--share] [--rounds 7]

A Qwen3-MoE of random weights, rank 16 on attention, and rank 16 / active on each expert or, with
--share, one adapter of rank 16 for all experts of a layer. Four sides take turns, one step each:
the base without an adapter (the floor); lorafit; lorafit with the experts left to peft, everything
else the same; peft's own layers, padded, with the model's logits. All must see the same tokens and
start from the same loss, or nothing is printed. The floor computes its experts as transformers
does, so a side can be below it. Ratios are taken round by round, on a CPU of CPU time, which other
programs disturb least; set OMP_NUM_THREADS=1 for it. Memory is what autograd keeps between forward
and backward pass, parameters left out.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from transformers import Qwen3MoeConfig

from lorafit import libraries
from lorafit.bench import machine
from lorafit.bench.request import DTYPES, Request
from lorafit.bench.run import refuse_disagreement, spread
from lorafit.bench.shapes import Shape
from lorafit.bench.sides import Side, build_floor, build_lorafit, build_peft
from lorafit.bench.workload import Workload, of_request
from lorafit.model.device import find_device
from lorafit.model.fast import experts
from lorafit.model.random_base import random_base
from lorafit.recipe.adapter import Adapter


def workload(options: argparse.Namespace) -> Workload:
    """The same rows and layout as `lorafit bench` has, on a mixture."""
    shape = Shape(options.width, options.layers, options.width // 64, options.width // 128,
                  options.inner, 8192, True)
    device, _ = find_device()
    config = Qwen3MoeConfig(
        hidden_size=shape.hidden, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads, head_dim=64, moe_intermediate_size=shape.inner,
        num_experts=options.experts, num_experts_per_tok=options.active,
        vocab_size=shape.vocabulary, tie_word_embeddings=True, use_cache=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None)
    base = random_base(config, options.dtype, "sdpa", device)
    request = Request(batch_size=options.rows, length=options.length, dtype=options.dtype)
    adapter = Adapter(rank=16, experts="shared" if options.share else "each",
                      rank_per_expert=not options.share)
    return replace(of_request(request, shape, base), model="qwen3_moe of chosen sizes",
                   adapter=adapter)


@contextmanager
def experts_left_to_peft() -> Iterator[None]:
    real = experts.why_not_fast
    experts.why_not_fast = lambda module: "left plain to be measured"
    try:
        yield
    finally:
        experts.why_not_fast = real


def step_s(side: Side) -> float:
    """Seconds of one step: CPU time, or on a GPU the clock's."""
    if side.workload.device.type != "cpu":
        return side.step().whole_s
    started = time.process_time()
    side.step()
    return time.process_time() - started


def measure(given: Workload, rounds: int) -> None:
    sides = [build_floor(given), build_lorafit(given)]
    with experts_left_to_peft():
        sides.append(build_lorafit(given, "peft's experts", "lorafit but for the experts"))
    sides.append(build_peft(given))
    for side in sides:
        for decision in side.decisions:
            if decision.key == "experts":
                print(f"{side.name}: experts {decision.value}  {decision.reason}")
    firsts = [side.first() for side in sides]
    refuse_disagreement(sides, firsts)
    kept = [side.memory_bytes() for side in sides]
    times: list[list[float]] = [[] for _ in sides]
    for turn in range(-1, rounds):  # the one before the first is not counted
        for number in [(turn + n) % len(sides) for n in range(len(sides))]:
            taken = step_s(sides[number])
            if turn >= 0:
                times[number].append(taken)
    for side, first, own, memory in zip(sides, firsts, times, kept, strict=True):
        ratio = spread([a / b for a, b in zip(own, times[0], strict=True)])
        seconds = spread(own).median
        print(f"{side.name:<15} {1e3 * seconds:8,.0f} ms  "
              f"{ratio.median:5.3f} of the floor ({ratio.low:.3f}–{ratio.high:.3f})  "
              f"{given.tokens / seconds:7,.0f} tokens/s  {memory / 2**20:7,.1f} MiB kept  "
              f"loss {first.loss:.6f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("width", 512), ("layers", 4), ("inner", 256), ("experts", 32),
                        ("active", 4), ("rows", 8), ("length", 256), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--share", action="store_true", help="one adapter for all experts")
    parser.add_argument("--dtype", choices=DTYPES[1:], default="float32")
    options = parser.parse_args()
    libraries.settle(needs_hub=False)
    given = workload(options)
    print(f"{given.tokens} tokens in {options.rows} rows, micro-batches of {given.micro_batch_size}"
          f"; {sum(p.numel() for p in given.base.parameters()) / 1e6:,.0f} million weights, "
          f"{torch.get_num_threads()} threads, {machine.describe(given.device)}")
    measure(given, options.rounds)


if __name__ == "__main__":
    main()
