"""Whether an artifact brings the tokenizer and the chat template of training."""

from pathlib import Path
from typing import Any

from lorafit.errors import UserError
from lorafit.export.delta.held_out import Rows
from lorafit.model.base import load_tokenizer
from lorafit.model.trained import AdapterSource
from lorafit.recipe.schema import Model
from lorafit.verify.figures import Figure

_NAME = "tokenizer and chat template"
_FILES = ("tokenizer_config.json", "tokenizer.json")


def tokenizer_figure(artifact: Path, source: AdapterSource, rows: Rows) -> Figure:
    """Compared by what the rows' texts become, and by the template's text.

    An artifact without a tokenizer is none the worse: programs take the base's then.
    """
    if not any((artifact / name).is_file() for name in _FILES):
        return Figure(_NAME, "none beside the weights")
    trained = source.tokenizer()
    try:
        own = load_tokenizer(Model(base=str(artifact.absolute()),
                                   trust_remote_code=source.model.trust_remote_code))
    except UserError as error:
        return Figure(_NAME, f"cannot be loaded: {error.problems[0].what}", "training's", False)
    wrong = []
    if _ids(own, trained, rows) != _ids(trained, trained, rows):
        wrong.append("makes other tokens of the rows")
    if own.chat_template != trained.chat_template:
        wrong.append("has no chat template" if not own.chat_template else
                     "has another chat template")
    return Figure(_NAME, "; ".join(wrong) or "training's", "training's", not wrong)


def _ids(tokenizer: Any, writer: Any, rows: Rows) -> list[list[int]]:
    """The tokens that a tokenizer makes of the rows' texts, as another one writes them."""
    texts = [writer.decode(ids.tolist()) for ids in rows.ids]
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
