"""The gguf library, which reads and writes the files: an extra, so asked for by name."""

from typing import Any

from lorafit.errors import UserError

TYPES = ("f32", "f16", "bf16", "q8_0")
"""In which weights can be stored; names as llama.cpp has them."""


def gguf_library() -> Any:
    """The module `gguf`. UserError with the command where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF needs the package gguf, which is not installed", "--format gguf",
                        "pip install 'lorafit[gguf]'") from None
    return gguf


def refuse_unknown_type(kind: str | None) -> None:
    """UserError for a storage type that is not written here."""
    if kind is not None and kind not in TYPES:
        raise UserError(
            f"unknown storage type {kind!r}", "--gguf-type",
            f"use {', '.join(TYPES)}; for smaller ones write f16 and run llama.cpp's "
            "llama-quantize on it")
