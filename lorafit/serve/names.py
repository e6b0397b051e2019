"""The name that an adapter is given on the command line, or has by its directory."""

import os
from pathlib import Path

from lorafit.errors import UserError
from lorafit.names import check_name


def split_name(text: str) -> tuple[str, Path]:
    """`NAME=RUN`, or a path whose own last part is the name.

    UserError for a name that cannot stand in an address or be a directory's.
    """
    if "=" in text and not os.path.exists(text):
        name, _, path = text.partition("=")
        if not name.strip() or not path.strip():
            raise UserError("is no adapter", text, "write RUN, or NAME=RUN")
        check_name(name, text, "write another: NAME=RUN")
        return name, Path(path)
    path_ = Path(text)
    absolute = Path(os.path.abspath(path_))
    # A run's adapter/ and exported/ say nothing themselves.
    generic = absolute.name in ("adapter", "exported") or absolute.name.startswith("step-")
    parent = absolute.parent.parent if absolute.parent.name == "checkpoints" else absolute.parent
    own = (parent.name if generic and parent.name else absolute.name) or "adapter"
    check_name(own, text, f"give it a name: NAME={text}")
    return own, path_
