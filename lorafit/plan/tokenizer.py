"""A base's tokenizer without the libraries that its class would bring."""

from typing import Any

from lorafit.errors import UserError
from lorafit.model.local_files import local_files
from lorafit.recipe.schema import Model


def fast_tokenizer(section: Model) -> Any | None:
    """The tokenizer of tokenizer.json; None where the base has none, whose class has to be asked.

    UserError when it cannot be read.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    folder, _ = local_files(section)
    if not (folder / "tokenizer.json").exists():
        return None
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"its tokenizer cannot be read: {message}", f"model.base: {section.base}",
                        "copy or download the model again") from None
