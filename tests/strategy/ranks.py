"""Real ranks for tests: forks of a process that has the libraries loaded, which meet by gloo."""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

_LOADED = ["torch", "transformers", "peft", "lorafit.train.run", "lorafit.smoke"]
_LIMIT_S = 240


def on_ranks(ranks: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returns on each rank. It can be imported by its name."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_LOADED)
    with tempfile.TemporaryDirectory() as folder:
        ends, processes = [], []
        for rank in range(ranks):
            mine, its = context.Pipe(duplex=False)
            process = context.Process(target=_run, daemon=True, args=(
                its, f"file://{folder}/meeting", rank, ranks, function, arguments))
            process.start()
            its.close()
            ends.append(mine)
            processes.append(process)
        answers = []
        for end in ends:
            answers.append(end.recv() if end.poll(_LIMIT_S) else (False, "no answer"))
            if not answers[-1][0]:
                break  # the others wait for this one
        for process in processes:
            if not answers[-1][0]:
                process.terminate()
            process.join(30)
    for is_fine, answer in answers:
        assert is_fine, answer
    return [answer for _, answer in answers]


def _run(end: Any, meeting: str, rank: int, ranks: int, function: Callable[..., Any],
         arguments: tuple[Any, ...]) -> None:
    import torch

    from lorafit import libraries

    libraries.settle(needs_hub=False)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    try:
        end.send((True, function(*arguments)))
    except BaseException:
        end.send((False, traceback.format_exc()))
    finally:
        torch.distributed.destroy_process_group()
