"""Starting several ranks on this machine, by torch's elastic launcher (what accelerate uses)."""

import logging
import os
import sys
import uuid
from collections.abc import Sequence


def started_by_a_launcher() -> bool:
    """Whether this process is already a rank of accelerate launch, torchrun or lorafit itself."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_main_rank() -> bool:
    """Whether this process speaks for the job."""
    return os.environ.get("RANK", "0") == "0"


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `python -m lorafit ARGUMENTS` in `processes` ranks; return the exit code.

    The first rank that fails decides the code; the launcher ends the others.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # A rank says itself what went wrong; the launcher's own account of it only buries that.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "lorafit", *arguments)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return next((code for code in codes if code > 0), 1)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0
