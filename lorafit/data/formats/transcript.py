"""Conversations written as one text, as the HH-RLHF data set has them."""

import re

from lorafit.data.examples import Message, refuse_broken_text

_ROLES = {"Human": "user", "Assistant": "assistant"}
# A speaker's name counts at the start of a paragraph only: inside a turn it may be quoted.
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):(?: |\Z)")
_FIRST = re.compile(r"\s*Human: ")


def is_transcript(text: str) -> bool:
    """Whether somebody is asked first, and the assistant has its turn."""
    return bool(_FIRST.match(text)) and "\n\nAssistant:" in text


def read_transcript(text: str) -> list[Message]:
    """The turns of a transcript, character for character."""
    refuse_broken_text(text, "the transcript")
    parts = _SPEAKER.split(text)
    return [Message(_ROLES[speaker], said)
            for speaker, said in zip(parts[1::2], parts[2::2], strict=True)]
