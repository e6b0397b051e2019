"""What chat needs in a GGUF: the template for llama.cpp's Jinja, and where an answer ends."""

import re
from datetime import date
from typing import Any

from lorafit.data.chat.program import Program
from lorafit.data.examples import BadRow

# Rendered to see what a template does: one and two turns, with a system message and without.
SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATION = [
    {"role": "user", "content": "How much is 12 and 30?"},
    {"role": "assistant", "content": "It is 42."},
    {"role": "user", "content": "And 100 more?\n\nThink first."},
]
_MARK = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")
# Tokens at which llama.cpp ends an answer by their names (src/llama-vocab.cpp).
ENDS_BY_NAME = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>",
    "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "<|end_of_text|>", "<end_of_utterance>",
    "</s>", "<eos>"))


def plain_template(tokenizer: Any) -> str | None:
    """The chat template without the marks of what is trained, which llama.cpp does not know.

    A mark becomes a comment that takes away the same white space.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        return None
    return _MARK.sub(lambda mark: f"{{#{mark[1]} {mark[2]}#}}", template)


def render(tokenizer: Any, template: str, messages: list[dict[str, str]],
           generation: bool = True) -> str | None:
    """The text of a conversation; None where the template refuses it."""
    values = {**tokenizer.special_tokens_map, "messages": messages, "tools": None,
              "documents": None, "add_generation_prompt": generation}
    try:
        return Program(template, date.today()).render(values)
    except BadRow:
        return None


def renderings(tokenizer: Any, template: str | None) -> list[str]:
    """Prompts as a server would send them."""
    if template is None:
        return []
    conversations = [CONVERSATION[:1], CONVERSATION, [SYSTEM, *CONVERSATION[:1]]]
    return [text for messages in conversations
            if (text := render(tokenizer, template, messages)) is not None]


def end_of_turn(tokenizer: Any, template: str | None) -> int | None:
    """The special token that closes an answer, where the template has one."""
    if template is None:
        return None
    text = render(tokenizer, template, CONVERSATION[:2], generation=False)
    if text is None or (place := text.rfind(CONVERSATION[1]["content"])) < 0:
        return None
    special = set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    rest = text[place + len(CONVERSATION[1]["content"]):]
    ids: list[int] = tokenizer(rest, add_special_tokens=False)["input_ids"]
    return next((number for number in ids if number in special), None)


def stops(tokenizer: Any, generation: dict[str, Any], closing: int | None) -> list[str]:
    """Texts of every token at which the model is meant to stop, in the order of their ids."""
    given = generation.get("eos_token_id")
    ids = {*([] if given is None else [given] if isinstance(given, int) else given),
           *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]),
           *([] if closing is None else [closing])}
    return [tokenizer.convert_ids_to_tokens(number) for number in sorted(ids)]
