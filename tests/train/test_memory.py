"""Running out of memory costs time, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lorafit.data.packing import Layout, MicroBatch, split_rows
from lorafit.errors import MachineError
from lorafit.model.loss import SummedLoss
from lorafit.run_dir import RunDir
from lorafit.train import loop
from lorafit.train.memory import Fit, halves, ran_out_of_memory


class SmallDevice:
    """A device that holds so many tokens of a forward pass and no more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokens: int, *, in_training: bool) -> None:
        self.refused = 0
        real = SummedLoss.forward

        def forward(module: SummedLoss, input_ids: torch.Tensor, *rest: object, **named: object
                    ) -> torch.Tensor:
            if input_ids.numel() > tokens and module.training is in_training \
                    and torch.is_grad_enabled() is in_training:
                self.refused += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return real(module, input_ids, *rest, **named)

        monkeypatch.setattr(SummedLoss, "forward", forward)


def losses(recipe) -> list[float]:
    lines = (Path(recipe.output.dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines if '"loss"' in line]


@pytest.mark.parametrize("batching", ["padded", "padding_free", "packed"])
def test_the_same_steps_with_smaller_micro_batches(make_recipe, train, monkeypatch, batching):
    settings = {"training": {"batch_size": 8, "micro_batch_size": 8, "batching": batching},
                "data": {"max_length_tokens": 128}}
    whole = make_recipe("whole", **settings)
    train(whole)
    small = SmallDevice(monkeypatch, 130, in_training=True)
    part = make_recipe("part", **settings)
    train(part)
    assert small.refused > 0
    assert losses(part) == pytest.approx(losses(whole), abs=1e-5)
    learnt = json.loads(RunDir(Path(part.output.dir)).memory.read_text())
    assert learnt["halvings"] > 0


def test_a_resumed_run_knows_what_was_learnt(make_recipe, train, monkeypatch):
    small = SmallDevice(monkeypatch, 100, in_training=True)
    train(make_recipe(training={"steps": 2, "micro_batch_size": 4, "batching": "padded"}))
    assert small.refused > 0
    small.refused = 0
    train(make_recipe(training={"steps": 4, "micro_batch_size": 4, "batching": "padded"}),
          resume=True)
    assert small.refused == 0


def test_an_evaluation_is_cut_and_measures_the_same(make_recipe, train, monkeypatch):
    settings = {"training": {"steps": 2, "micro_batch_size": 4, "batching": "padded"}}
    plain = train(make_recipe("whole", **settings))
    small = SmallDevice(monkeypatch, 60, in_training=False)
    cut = train(make_recipe("part", **settings))
    assert small.refused > 0
    assert cut.progress.first_eval_loss == pytest.approx(plain.progress.first_eval_loss, abs=1e-6)


def test_one_row_that_does_not_fit_is_an_error_with_the_way_out(make_recipe, train, monkeypatch):
    SmallDevice(monkeypatch, 10, in_training=True)
    recipe = make_recipe(data={"eval": None})
    with pytest.raises(MachineError, match=r"with one row of \d+ tokens at a time\n.*quantise"):
        train(recipe)
    assert RunDir(Path(recipe.output.dir)).list_checkpoints()  # of step 0: it can be resumed


def test_the_longest_rows_are_tried_before_the_first_step(make_recipe, train, monkeypatch):
    """Where an allocator says that memory is out: here a process with a limit stands for a GPU."""
    monkeypatch.setattr(loop, "may_run_out", lambda device: True)
    small = SmallDevice(monkeypatch, 100, in_training=True)
    recipe = make_recipe(training={"steps": 3, "micro_batch_size": 4, "batching": "padded"},
                         data={"eval": None})
    train(recipe)
    assert small.refused == 1  # and no step was taken twice
    assert json.loads(RunDir(Path(recipe.output.dir)).memory.read_text())["since_step"] == 1
    monkeypatch.undo()
    whole = make_recipe("whole", training={"steps": 3, "micro_batch_size": 4,
                                           "batching": "padded"}, data={"eval": None})
    train(whole)
    assert losses(recipe) == pytest.approx(losses(whole), abs=1e-5)


@pytest.mark.parametrize("batching", ["padded", "padding_free", "packed"])
def test_pieces_hold_each_example_once(batching):
    lengths = np.array([5, 9, 3, 3, 8, 2, 7])
    parts = split_rows(lengths, Layout(batching, 4, 20), 2)
    for halvings in range(5):
        pieces = Fit(halvings=halvings).pieces(parts)
        found = sorted(i for piece in pieces for i in piece.examples)
        assert found == list(range(7))
        largest = max(len(piece.examples) for piece in pieces)
    assert largest == 1
    assert halves(MicroBatch(((3,),))) == [MicroBatch(((3,),))]


def test_which_errors_mean_that_memory_is_out():
    assert ran_out_of_memory(torch.OutOfMemoryError("x"))
    assert ran_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:  # the real one of this CPU
        torch.empty(1 << 60, dtype=torch.uint8)
    assert ran_out_of_memory(caught.value)
    assert not ran_out_of_memory(RuntimeError("shapes differ"))
    assert not ran_out_of_memory(ValueError("out of memory"))


def test_the_memory_of_a_process_is_not_that_of_who_started_it():
    script = ("import torch; from lorafit.train.memory import peak_memory_bytes; "
              "print(peak_memory_bytes(torch.device('cpu')))")
    held = bytearray(2 << 30)  # pages of this process are counted by getrusage of its children
    held[::4096] = b"x" * len(held[::4096])
    peak = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                              check=True).stdout)
    assert 100 << 20 < peak < 1 << 30
