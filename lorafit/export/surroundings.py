"""What travels beside weights: tokenizer, chat template, generation settings."""

import shutil
from pathlib import Path

from lorafit.model.local_files import local_files
from lorafit.model.trained import AdapterSource

GENERATION = "generation_config.json"


def write_surroundings(source: AdapterSource, folder: Path) -> None:
    """Tokenizer with the chat template of training, and the base's generation settings.

    Not the base's config.json: transformers takes a directory that has one for a whole model, and
    does not load the adapter in it.
    """
    source.tokenizer().save_pretrained(folder)
    settings = local_files(source.model)[0] / GENERATION
    if settings.is_file():
        shutil.copyfile(settings, folder / GENERATION)
