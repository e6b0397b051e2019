"""Forms in which an adapter leaves: one module each, named here."""

from lorafit.errors import UserError
from lorafit.export.formats.format import Format
from lorafit.export.formats.gguf import GGUF
from lorafit.export.formats.peft import PEFT

FORMATS: dict[str, Format] = {form.name: form for form in (PEFT, GGUF)}


def format_named(name: str) -> Format:
    """UserError for a name that no format has."""
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r}", "--format", f"use {', '.join(FORMATS)}")
    return FORMATS[name]
