"""Alpaca rows: instruction, optional input, output."""

from collections.abc import Mapping
from typing import Any

from lorafit.data.examples import Exchange, answer_of, text_of

NAME = "alpaca"
ROLES = {"prompt": ("instruction",), "input": ("input",), "completion": ("output", "response")}
REQUIRED = ("prompt", "completion")


def convert(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> Exchange:
    """A row as instruction (and input) with its answer; BadRow when a column is missing."""
    instruction = text_of(fields, mapping["prompt"])
    extra = text_of(fields, mapping["input"], optional=True) if "input" in mapping else ""
    system = text_of(fields, mapping["system"], optional=True) if "system" in mapping else ""
    parts = [f"### Instruction:\n{instruction}"]
    if extra:
        parts.append(f"### Input:\n{extra}")
    parts.append("### Response:\n")
    return Exchange(
        prompt=f"{instruction}\n\n{extra}" if extra else instruction,
        completion=answer_of(fields, mapping["completion"]),
        system=system or None,
        plain_prompt="\n\n".join(parts),
    )
