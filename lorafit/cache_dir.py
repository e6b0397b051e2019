"""Where lorafit keeps what it can make again, and what the user has allowed."""

import os
from pathlib import Path

from lorafit.errors import MachineError

REMEDY = ("make room (lorafit cache --help), or set the environment variable LORAFIT_CACHE to "
          "another directory")


def cache_directory() -> Path:
    """`$LORAFIT_CACHE`, or `lorafit` in the user's cache directory. MachineError when there is no
    home directory, as in some containers."""
    given = os.environ.get("LORAFIT_CACHE")
    try:
        if given:
            return Path(given).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lorafit"
    except RuntimeError:
        raise MachineError(f"{given or '~/.cache'}: there is no such home directory\n    set the "
                           "environment variable LORAFIT_CACHE to a directory") from None
