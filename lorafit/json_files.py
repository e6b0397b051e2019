"""JSON files that somebody else may have written: an object within limits, or a UserError."""

import json
import stat
from pathlib import Path
from typing import Any

from lorafit.errors import UserError

MOST_BYTES = 64 << 20
"""Largest file that is read: the index of the largest models has a few megabytes."""


def read_object(path: Path, remedy: str = "copy it again", most_bytes: int = MOST_BYTES,
                ) -> dict[str, Any]:
    """The JSON object in a file.

    UserError, naming the file, where there is none, it is too large, or it is anything else:
    nested without end, no UTF-8, a list, a pipe.
    """
    where = str(path)
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UserError("is no regular file", where, remedy)
        if found.st_size > most_bytes:
            raise UserError(f"is too large for what it should hold ({found.st_size / 1e6:,.0f} MB, "
                            f"at most {most_bytes / 1e6:,.0f})", where, remedy)
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError("is missing", where, remedy) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where, remedy) from None
    except RecursionError:
        raise UserError("is damaged: nested too deeply", where, remedy) from None
    except ValueError as error:
        raise UserError(f"is damaged: not JSON ({error})", where, remedy) from None
    if not isinstance(values, dict):
        raise UserError("is damaged: not a JSON object", where, remedy)
    return values
