"""lorafit with a clock on its saves: how long they take, beside the run.

    python -m reliability.timing OUT.json train RECIPE …
"""

import json
import sys
import time
from functools import wraps
from pathlib import Path
from typing import Any


def main() -> None:
    target, *arguments = sys.argv[1:]
    from lorafit.cli.main import main as lorafit
    from lorafit.train import loop

    saves_s: list[float] = []
    real = loop.save_checkpoint

    @wraps(real)
    def timed(*given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return real(*given, **named)
        finally:
            saves_s.append(time.perf_counter() - started)

    loop.save_checkpoint = timed
    sys.argv = ["lorafit", *arguments]
    started = time.perf_counter()
    try:
        lorafit()
    finally:
        Path(target).write_text(json.dumps(
            {"saves_s": saves_s, "run_s": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
