"""What a processor calls itself."""

import platform
from pathlib import Path


def processor_name() -> str:
    """As Linux lists it; elsewhere what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines
                 if line.startswith("model name")), platform.machine())
