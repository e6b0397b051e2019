"""Forms in which an adapter leaves: one module each, named here with the programs that load it.

A format `x` is the module x.py of this package, which holds it as X. Nothing heavy is imported
here, so that a wrong name is refused and `--help` is written at once.
"""

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

from lorafit.errors import UserError

if TYPE_CHECKING:
    from lorafit.export.formats.format import Format

FORMATS: dict[str, str] = {
    "peft": "peft and transformers",
    "vllm": "vLLM",
    "sglang": "SGLang",
    "mlx": "mlx-lm",
    "gguf": "llama.cpp and Ollama",
}


def check_format(name: str) -> None:
    """UserError for a name that no format has."""
    if name not in FORMATS:
        close = difflib.get_close_matches(name, FORMATS, 1, 0.5)
        raise UserError(f"no format is called {name!r}", "--format",
                        f"did you mean {close[0]}?" if close else f"use {', '.join(FORMATS)}")


def format_named(name: str) -> "Format":
    """UserError for a name that no format has."""
    check_format(name)
    form: Format = getattr(import_module(f"{__name__}.{name}"), name.upper())
    return form
