"""Rows with a prompt and its completion; also questions and answers, by column mapping."""

from collections.abc import Mapping
from typing import Any

from lorafit.data.examples import Exchange, answer_of, text_of

NAME = "prompt_completion"
ROLES = {"prompt": ("prompt", "question"), "completion": ("completion", "answer")}
REQUIRED = ("prompt", "completion")


def convert(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> Exchange:
    """A row as prompt and completion; BadRow when a column is missing or the answer is empty."""
    system = text_of(fields, mapping["system"], optional=True) if "system" in mapping else ""
    return Exchange(
        prompt=text_of(fields, mapping["prompt"]),
        completion=answer_of(fields, mapping["completion"]),
        system=system or None,
    )
