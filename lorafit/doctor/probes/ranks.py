"""Two processes that meet, as the ranks of a run do. Opens sockets of this machine."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from lorafit.doctor.finding import Finding, Section

_LIMIT_S = 40
_RANK = """\
import sys
sys.path[:] = sys.argv[4].split("\\n")
from datetime import timedelta
import torch, torch.distributed as ranks
backend, file, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
if backend == "nccl":
    torch.cuda.set_device(rank)
ranks.init_process_group(backend, init_method="file://" + file, rank=rank, world_size=2,
                         timeout=timedelta(seconds=30))
number = torch.ones(1000, device="cuda" if backend == "nccl" else "cpu") * (rank + 1)
ranks.all_reduce(number)
assert float(number.sum()) == 3000, number
ranks.destroy_process_group()
"""


def meet(section: Section) -> Iterator[Finding]:
    """A sum over two ranks by gloo, and by NCCL where there are two GPUs."""
    for backend in ("gloo", *(("nccl",) if torch.cuda.device_count() > 1 else ())):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="lorafit-doctor-") as folder:
            wrong = _sum(backend, Path(folder) / "meeting")
        if wrong:
            yield section.problem(backend, wrong, "let the host's name resolve to an address of "
                                  "its own (/etc/hosts), or set GLOO_SOCKET_IFNAME or "
                                  "NCCL_SOCKET_IFNAME to an interface")
        else:
            yield section.ok(backend, "two processes met and summed in "
                             f"{time.perf_counter() - started:.1f} s")


def _sum(backend: str, meeting: Path) -> str:
    """What went wrong, if anything."""
    each = [subprocess.Popen([sys.executable, "-c", _RANK, backend, str(meeting), str(rank),
                              "\n".join(sys.path)],
                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE, text=True) for rank in range(2)]
    said = []
    deadline = time.monotonic() + _LIMIT_S
    for rank in each:
        try:
            said.append(rank.communicate(timeout=max(0.1, deadline - time.monotonic()))[1])
        except subprocess.TimeoutExpired:
            said.append(f"no answer in {_LIMIT_S} s")
    for rank in each:
        rank.kill()
        rank.wait()
    failed = next((text for rank, text in zip(each, said, strict=True) if rank.returncode), "")
    return next((line for line in reversed(failed.splitlines()) if line.strip()), "")
