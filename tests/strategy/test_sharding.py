"""Parts of tensors, groups of ranks, and which way is chosen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lorafit.errors import UserError
from lorafit.recipe import auto
from lorafit.train.strategy.wanted import Wanted, refuse_misfit, with_environment

GB = 10**9

PARTS = """
import torch
from accelerate import Accelerator
from torch import nn
from lorafit.model.parts import local_part
from lorafit.train.strategy.sharded import Sharded

strategy = Sharded(Accelerator(cpu=True))
assert strategy.ranks == 3

class Module(nn.Module):
    def __init__(self):
        super().__init__()
        # fewer rows than ranks, as many, a division with a rest, one without
        self.layers = nn.ModuleList(nn.Linear(5, rows) for rows in (1, 3, 7, 9))
    def call(self, function):
        return function()
    def forward(self, x):
        return sum(layer(x).sum() for layer in self.layers)

torch.manual_seed(0)
module = Module()
before = {name: p.detach().clone() for name, p in module.named_parameters()}
strategy.place(module, list(module.layers))
for name, p in module.named_parameters():
    assert torch.equal(strategy.whole_tensor(p.detach()), before[name]), name
    again = strategy.part_of(before[name], p)
    assert torch.equal(local_part(again), local_part(p)), name
with strategy.whole(module):
    if strategy.is_main:
        assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
assert all(type(p).__name__ != "Parameter" or p.numel() for p in module.parameters())

x = torch.ones(2, 5) * (strategy.rank + 1)
for number in range(2):  # two micro-batches: summed once, after the last
    strategy.before_pass(module, is_last=number == 1)
    module(x).backward()
parameters = list(module.parameters())
wanted = {5: 2 * 2 * (1 + 2 + 3), 1: 2 * 2 * 3}  # weight: inputs summed; bias: rows counted
squares = sum(float(wanted[5 if name.endswith("weight") else 1]) ** 2 * before[name].numel()
              for name in before)
norm = float(strategy.clip(parameters, 1.0))
assert abs(norm - squares ** 0.5) < 1e-3 * norm, (norm, squares ** 0.5)
after = float(strategy.clip(parameters, 1e9))
assert abs(after - 1.0) < 1e-4, after
print("as it must be")
"""


def test_parts_are_what_was_cut_up(tmp_path):
    (tmp_path / "parts.py").write_text(PARTS)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3",
         str(tmp_path / "parts.py")], capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.stdout.count("as it must be") == 3, done.stderr


@pytest.mark.parametrize(("ranks", "neighbours", "base", "memory", "why_not", "value", "said"), [
    (8, 8, 16 * GB, 80 * GB, None, "ddp", "16 GB"),
    (8, 8, 141 * GB, 80 * GB, None, "fsdp", "among 8"),
    (16, 8, 141 * GB, 80 * GB, None, "hsdp", "the 8 of each machine"),
    (16, 8, 810 * GB, 80 * GB, None, "fsdp", "among 16"),
    (12, 8, 141 * GB, 80 * GB, None, "fsdp", "among 12"),  # machines of other sizes
    (8, 8, 141 * GB, 80 * GB, "it shares", "ddp", "cannot be sharded: it shares"),
])
def test_what_auto_chooses(ranks, neighbours, base, memory, why_not, value, said):
    decision = auto.strategy("auto", ranks, neighbours, base, memory, why_not)
    assert decision.value == value
    assert said in decision.reason


@pytest.mark.parametrize(("wanted", "sections", "said"), [
    (Wanted("zero3"), {}, "there is no strategy 'zero3'"),
    (Wanted("ddp", cpu_offload=True), {}, "every device holds the whole base"),
    (Wanted("fsdp"), {"model": {"quantization": "int8"}}, "nf4 can be"),
    (Wanted("hsdp"), {"training": {"optimizer": "adamw_8bit"}}, "blocks of whole weights"),
    (Wanted("auto", cpu_offload=True), {"training": {"activation_offloading": True}},
     "cut up already"),
])
def test_what_does_not_go_together_is_refused(wanted, sections, said, make_recipe):
    with pytest.raises(UserError, match=said) as refused:
        refuse_misfit(wanted, make_recipe(**sections))
    assert refused.value.problems[0].remedy


def test_accelerates_configuration_is_taken(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert with_environment(Wanted()) == Wanted("fsdp", cpu_offload=True)
    assert os.environ["ACCELERATE_USE_FSDP"] == "false"  # lorafit shards, accelerate does not
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert with_environment(Wanted("ddp")) == Wanted("ddp")  # the command line goes first
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match=r"DEEPSPEED(.|\n)*--strategy fsdp(.|\n)*--cpu-offload"):
        with_environment(Wanted())


def test_a_refusal_is_said_once_and_leaves_nothing(make_recipe, tmp_path):
    recipe = make_recipe(model={"quantization": "int8"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump()))
    done = subprocess.run(
        [sys.executable, "-m", "lorafit", "train", str(tmp_path / "recipe.yaml"),
         "--num-processes", "2", "--strategy", "fsdp"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert not Path(recipe.output.dir).exists()
