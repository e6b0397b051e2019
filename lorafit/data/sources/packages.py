"""Packages that only some sources need, imported when one does."""

import importlib
from typing import Any

from lorafit.errors import UserError


def import_package(name: str, where: str, instead: str) -> Any:
    """A package or a module of it. UserError with what to do `instead` when it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise UserError(f"needs the package `{package}`, which is not installed", where,
                        f"pip install {package}, or {instead}") from None
