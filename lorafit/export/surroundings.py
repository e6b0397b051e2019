"""What travels beside weights: tokenizer, chat template, generation settings."""

import shutil
from pathlib import Path

from lorafit.model.base import resolve_base
from lorafit.model.trained import AdapterSource

GENERATION = "generation_config.json"


def write_surroundings(source: AdapterSource, folder: Path) -> None:
    """Tokenizer with the chat template of training, and the base's generation settings.

    Not the base's config.json: transformers takes a directory that has one for a whole model, and
    does not load the adapter in it.
    """
    from transformers.utils import cached_file

    source.tokenizer().save_pretrained(folder)
    settings = cached_file(
        resolve_base(source.model.base), GENERATION, revision=source.model.revision or "main",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False)
    if settings is not None:
        shutil.copyfile(settings, folder / GENERATION)
