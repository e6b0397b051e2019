"""One chat template for an engine that has one for all its models."""

import json
import re
from collections.abc import Mapping

from lorafit.errors import Problem, UserError
from lorafit.model.trained import AdapterSource
from lorafit.serve.prompts import prompts_of


def template_for_all(adapters: Mapping[str, AdapterSource]) -> tuple[str | None, list[str]]:
    """The template that all adapters were trained with, and what there is to know of it.

    A system message that a run gave to rows without one is written into it. None where the
    adapters were trained on plain text. UserError when they were trained with different ones.
    """
    templates: dict[str, str | None] = {}
    remarks = []
    for name, source in adapters.items():
        renderer = prompts_of(source).renderer
        template = renderer.template
        if not renderer.exchanges_as_chat:
            remarks.append(f"{name} was trained on text that no template rendered: ask it with "
                           "/v1/completions")
        if template and renderer.system:
            template = _with_system(template, renderer.system)
        if template and "strftime_now" in template and source.data and source.data.date:
            remarks.append(f"{name} was trained with the date {source.data.date}; the engine "
                           "writes today's")
        templates[name] = template
    first_name, first = next(iter(templates.items()))
    problems = [
        Problem(f"{name} and {first_name} were trained with different chat templates or system "
                "messages, and the engine has one for all", name,
                "serve them apart, or with --engine transformers")
        for name, template in templates.items() if template != first]
    if problems:
        raise UserError(problems=problems)
    return first, remarks


def without_marks(template: str) -> str:
    """The template without the marks of what is generated, which only transformers knows."""
    return re.sub(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}", r"{%\1 if true %}{% endif \2%}",
                  template)


def _with_system(template: str, system: str) -> str:
    """The template for messages that bring a system message, and with this one for others."""
    text = json.dumps(system, ensure_ascii=False)
    return ("{%- if messages[0]['role'] not in ('system', 'developer') -%}"
            f"{{%- set messages = [{{'role': 'system', 'content': {text}}}] + messages -%}}"
            "{%- endif %}\n" + template)
