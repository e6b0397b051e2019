"""What ranks send each other in an optimizer step: on paper, and counted on a network interface.

    python scripts/benchmark_communication.py            # counted in runs of 2 to 4 processes
    python scripts/benchmark_communication.py --paper    # the tables of docs/scaling.md

Counted is with `lorafit train` on a small Llama of random weights, in a network namespace of its
own that has nothing but the loopback interface: what the kernel says that was sent there is what
the ranks sent. A run of twice the steps less a run of the steps leaves the steps: starting,
meeting, loading and saving are the same in both. Exits with 1 where paper and count differ by over
10 %. Needs Linux and leave to make a namespace, which root has.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorafit.bench import communication as paper
from lorafit.bench.shapes import SHAPES, Shape

ALLOWED = 0.10
SMALL = Shape(hidden=512, layers=8, heads=8, key_heads=4, inner=1408, vocabulary=4096, tied=False)
BIG = {"Llama-3.1-8B": SHAPES["llama-3.1-8b"],
       "Llama-3.1-70B": Shape(8192, 80, 64, 8, 28_672, 128_256, False)}
LORA: dict[str, Any] = {"method": "lora", "rank": 16, "alpha": 16}
FULL: dict[str, Any] = {"method": "full"}
# On paper, from NVIDIA's data sheets: bfloat16 without sparsity; NVLink each way; one 400 Gb/s
# adapter a GPU. The utilisation is assumed.
MACHINE = paper.Machine(989e12, 0.4, 450e9, 50e9)
GPUS_A_MACHINE = 8


NEIGHBOURS = 2  # ranks of a machine in what is counted


@dataclass(frozen=True)
class Way:
    """A run that is counted. base: storage of frozen weights. machines: of two ranks each."""

    name: str
    strategy: str
    adapter: dict[str, Any]
    base: str = "none"
    machines: int = 1

    @property
    def ranks(self) -> int:
        return NEIGHBOURS * self.machines


WAYS = [Way("DDP, LoRA", "ddp", LORA), Way("DDP, full fine-tuning", "ddp", FULL),
        Way("FSDP2, LoRA", "fsdp", LORA), Way("FSDP2, LoRA on nf4", "fsdp", LORA, "nf4"),
        Way("FSDP2, full fine-tuning", "fsdp", FULL),
        Way("HSDP, LoRA, 2 machines", "hsdp", LORA, machines=2)]


def config_of(shape: Shape) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=shape.hidden, num_hidden_layers=shape.layers, intermediate_size=shape.inner,
        num_attention_heads=shape.heads, num_key_value_heads=shape.key_heads,
        vocab_size=shape.vocabulary, tie_word_embeddings=shape.tied, max_position_embeddings=8192,
        use_cache=False, bos_token_id=None, eos_token_id=None, pad_token_id=None)


def held_by(shape: Shape, adapter: dict[str, Any], base: str,
            base_bytes: int) -> tuple[list[paper.Held], float]:
    """Every weight as lorafit holds it for a run, and the FLOPs of a token.

    base: storage of the decoder layers' frozen weights, none or nf4. base_bytes: of a number of
    what is frozen and not quantised. What is trained is held in float32. Asked of one layer, which
    all are like.
    """
    from lorafit.model.adapters.add import add_adapter
    from lorafit.model.base import meta_model
    from lorafit.recipe.adapter import Adapter

    one = replace(shape, layers=1)
    model = add_adapter(meta_model(config_of(one)), Adapter(**adapter), 0, "counted")
    held, linear = [], []
    for name, weight in model.named_parameters():
        words = name.split(".")
        layers: Sequence[int | None] = range(shape.layers) if "layers" in words else [None]
        is_linear = weight.ndim == 2 and "embed_tokens" not in words and "lora_" not in name
        item_bytes = paper.FLOAT32_BYTES if weight.requires_grad else base_bytes
        each = paper.Held(tuple(weight.shape), item_bytes, weight.requires_grad, None)
        linear += [each] * is_linear * len(layers)
        if base == "nf4" and is_linear and "layers" in words:  # two numbers a byte
            each = paper.Held(((weight.numel() + 1) // 2, 1), 1, False, None)
        held += [replace(each, layer=layer) for layer in layers]
    return held, paper.flops_a_token(linear, [each for each in held if each.is_trained],
                                     is_full=adapter["method"] == "full")


def expected(way: Way, micro_batches: int) -> float:
    """Bytes that a rank sends in a step, for what is counted here: float32, gloo."""
    held, _ = held_by(SMALL, way.adapter, way.base, paper.FLOAT32_BYTES)
    if way.strategy == "ddp":
        return paper.ddp(held, way.ranks, micro_batches).total
    if way.strategy == "fsdp":
        return paper.fsdp(held, way.ranks, micro_batches, by_gloo=True).total
    return sum(part.total for part in paper.hsdp(held, way.ranks, NEIGHBOURS, micro_batches,
                                                 by_gloo=True))


def namespace() -> list[str] | None:
    """The command before one that runs it in a network namespace of its own; None where that is not
    permitted."""
    for command in (["unshare", "--net"], ["unshare", "--net", "--map-root-user"]):
        try:
            tried = subprocess.run([*command, "ip", "link", "set", "lo", "up"], capture_output=True)
        except OSError:
            return None
        if tried.returncode == 0:
            return command
    return None


def write_base(folder: Path) -> None:
    """The small Llama, and rows to train it on."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lorafit.model.base import TINY

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config_of(SMALL), dtype=torch.float32)
    model.save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder / "base")
    (folder / "rows.jsonl").write_text("".join(
        json.dumps({"prompt": f"{n} and {n}?", "completion": f"{2 * n}"}) + "\n"
        for n in range(64)))


def count(way: Way, folder: Path, steps: int, micro_batches: int) -> float:
    """Bytes that a rank sends in a step. RuntimeError, with what was printed, when a run fails."""
    with ThreadPoolExecutor(2) as pool:
        short, long = pool.map(lambda length: sent_by_run(way, folder, length, micro_batches),
                               (steps, 2 * steps))
    return (long - short) / steps / way.ranks


def sent_by_run(way: Way, folder: Path, steps: int, micro_batches: int) -> int:
    """Bytes that went over the loopback interface of a run's own namespace."""
    run = f"{way.strategy}-{way.adapter['method']}-{way.base}-{steps}"
    recipe = {
        "model": {"base": str(folder / "base"), "dtype": "float32", "quantization": way.base},
        "adapter": way.adapter,
        "data": {"train": str(folder / "rows.jsonl")},
        "training": {"steps": steps, "batch_size": way.ranks * micro_batches, "micro_batch_size": 1,
                     "batching": "padded", "learning_rate": 1e-4, "checkpoint_every": 1000},
        "output": {"dir": str(folder / run)},
    }
    path = folder / f"{run}.yaml"
    path.write_text(json.dumps(recipe))
    train = [sys.executable, "-m", "lorafit", "train", str(path), "--num-processes",
             str(NEIGHBOURS), "--strategy", way.strategy]
    several = f"--nodes {way.machines} --rendezvous 127.0.0.1:29400 --node-rank"
    others = "".join(f'"$@" {several} {number} >&2 & ' for number in range(1, way.machines))
    first = f"{several} 0" if others else ""
    # The counter is read in the namespace, which is gone afterwards.
    script = f'ip link set lo up; {others}"$@" {first} >&2 && wait && grep lo: /proc/self/net/dev'
    unshare = namespace()
    assert unshare is not None
    done = subprocess.run(
        [*unshare, "bash", "-c", script, "bash", *train], capture_output=True, text=True, env={
            **os.environ, "LORAFIT_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
            "GLOO_SOCKET_IFNAME": "lo", "LORAFIT_CACHE": str(folder / f"cache-{run}")})
    if done.returncode != 0:
        raise RuntimeError(f"{way.name}: {done.stderr[-2000:]}")
    return int(done.stdout.split()[9])  # lo: eight figures of what was received, bytes sent


def count_all(ways: Sequence[Way], steps: int, micro_batches: int) -> list[dict[str, Any]]:
    found = []
    with tempfile.TemporaryDirectory(prefix="lorafit-communication-") as place:
        write_base(Path(place))
        for way in ways:
            sent = expected(way, micro_batches)
            counted = count(way, Path(place), steps, micro_batches)
            found.append({"way": way.name, "ranks": way.ranks, "paper": sent, "counted": counted,
                          "ratio": counted / sent})
            print(f"{way.name}: {found[-1]['ratio']:.4f}", file=sys.stderr)
    return found


def count_table(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| a step | ranks | a rank sends on paper | counted | ratio |"
    yield "|---|---|---|---|---|"
    for each in found:
        yield (f"| {each['way']} | {each['ranks']} | {each['paper'] / 1e6:.2f} MB "
               f"| {each['counted'] / 1e6:.2f} MB | {each['ratio']:.4f} |")


def bytes_table() -> Iterator[str]:
    """What a device sends in a step of one micro-batch, the base in bfloat16 or nf4."""
    yield "| model | trained | held in all | DDP: a step | FSDP2: a micro-batch | and a step " \
          "| HSDP out of the machine: a step |"
    yield "|---|---|---|---|---|---|---|"
    for name, ranks, kind, held, _ in cases():
        sharded = paper.fsdp(held, ranks)
        size = sum(each.numbers * each.item_bytes for each in held)
        cells = [_size(size), _size(paper.ddp(held, ranks).total), _size(sharded.each_pass),
                 _size(sharded.once), "" if ranks == GPUS_A_MACHINE
                 else _size(paper.hsdp(held, ranks, GPUS_A_MACHINE)[1].total)]
        yield f"| {name}, {ranks} GPUs | {kind} | {' | '.join(cells)} |"


def time_table() -> Iterator[str]:
    """How long sending takes, and the tokens that a device computes meanwhile."""
    yield "| model | trained | DDP: a step | FSDP2: a micro-batch | HSDP: a micro-batch |"
    yield "|---|---|---|---|---|"
    for name, ranks, kind, held, flops in cases():
        is_one_machine = ranks == GPUS_A_MACHINE
        link = MACHINE.inside if is_one_machine else MACHINE.outside
        times = [paper.ddp(held, ranks).total / link, paper.fsdp(held, ranks).total / link]
        if not is_one_machine:
            within, out = paper.hsdp(held, ranks, GPUS_A_MACHINE)
            times.append(within.total / MACHINE.inside + out.total / MACHINE.outside)
        cells = [f"{_time(time)}, {_tokens(MACHINE.even_tokens(time, flops))} tokens"
                 for time in times]
        yield f"| {name}, {ranks} GPUs | {kind} | {' | '.join(cells)}{' | ' * is_one_machine} |"


def cases() -> Iterator[tuple[str, int, str, list[paper.Held], float]]:
    """Model, GPUs, what is trained, weights, FLOPs of a token."""
    for name, shape in BIG.items():
        for kind, adapter, base in (("LoRA r=16", LORA, "none"), ("LoRA r=16 on nf4", LORA, "nf4"),
                                    ("all weights", FULL, "none")):
            held, flops = held_by(shape, adapter, base, 2)
            for ranks in (GPUS_A_MACHINE, 64):
                yield name, ranks, kind, held, flops


def _size(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 0.95 else f"{seconds * 1e3:.3g} ms"


def _tokens(tokens: float) -> str:
    """Three figures."""
    digits = max(0, len(str(int(tokens))) - 3)
    return f"{round(tokens / 10**digits) * 10**digits:,}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="print the tables, run nothing")
    parser.add_argument("--steps", type=int, default=3, help="steps of the shorter run")
    parser.add_argument("--micro-batches", type=int, default=2, help="of a step, on each rank")
    parser.add_argument("--only", metavar="WORD", default="", help="ways with it in their name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts there too")
    given = parser.parse_args()
    from lorafit import libraries

    libraries.settle(needs_hub=False)
    if given.paper:
        print(*bytes_table(), "", *time_table(), sep="\n")
        return 0
    if namespace() is None:
        print("skipped: a network namespace of its own is not permitted here (unshare --net)")
        return 0
    found = count_all([way for way in WAYS if given.only.lower() in way.name.lower()], given.steps,
                      given.micro_batches)
    print(*count_table(found), sep="\n")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1))
    return int(any(abs(each["ratio"] - 1) > ALLOWED for each in found))


if __name__ == "__main__":
    sys.exit(main())
